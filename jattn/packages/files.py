"""Files out of packages: taken from an archive, and put where they are kept, whole or not at all."""

import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from jattn.packages.registries import Package


def cache_folder(kind: str) -> Path:
    """Where fetched files of a kind lie: the folder that JATTN_KIND names, by default `~/.cache/jattn/KIND`."""
    folder = os.environ.get(f"JATTN_{kind.upper()}")
    return Path(folder) if folder else Path.home() / ".cache/jattn" / kind


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A new empty folder, which takes the target's place when the block ends, and vanishes if that raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        whole = Path(name, "whole")
        whole.mkdir()
        yield whole
        if target.exists():
            target.rename(Path(name, "before"))
        whole.rename(target)


def take(package: Package, wanted: Callable[[str], bool], room: int, into: Path) -> None:
    """Download a package and take files of its folder out of it, and no others; links are left in it.

    Args:
      wanted: whether a file of that name is taken.
      room: bytes that the files may have together.

    Raises:
      FileNotFoundError, ChildProcessError, TimeoutError: as `Package.download`.
      ValueError: the archive is damaged, or the files are larger.
    """
    left = room
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".download.") as name:
        try:
            for path, size, open_file in _members(package.download(Path(name))):
                if path.parent != package.inside or not wanted(path.name):
                    continue
                left -= size
                if left < 0:
                    raise ValueError(f"the files of {package.name} must have at most {room} bytes; they have more")
                with open_file() as file, open(into / path.name, "wb") as output:
                    shutil.copyfileobj(file, output)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
            raise ValueError(f"the archive of {package.name} cannot be unpacked: {error}") from None


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, int, Callable[[], IO[bytes]]]]:
    """Path, size, and how to open it, of every file in an archive; none gives more bytes than its size."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                yield PurePosixPath(entry.filename), entry.file_size, lambda entry=entry: packed.open(entry)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)) is not None:
                    yield PurePosixPath(member.name), member.size, lambda file=file: file
