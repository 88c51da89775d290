"""A corpus: documents of text, each a name and its bytes."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jattn.data.source import digest_of


class Document(NamedTuple):
    """A text in bytes, UTF-8 in every corpus here, and a name that no other document of its corpus has."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Corpus:
    """Documents, sorted by name."""

    name: str
    documents: tuple[Document, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of all documents: what a run should record of its text."""
        return digest_of(self.documents)

    @property
    def size(self) -> int:
        """Bytes of all documents together."""
        return sum(len(document.content) for document in self.documents)
