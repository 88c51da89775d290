"""Experiments: what they must be, and how they are found."""

import sys
from dataclasses import dataclass

import pytest

from jattn.runs import Experiment, Preset, discover, load_experiment

FILE = """
from dataclasses import dataclass
from jattn.runs import Experiment, Preset


@dataclass(frozen=True)
class Config:
    steps: "int" = 3  # an annotation in words: resolved in the module of the file


EXPERIMENT = Experiment("mine", "my own", None, {"smoke": Preset(Config(), "seconds")}, lambda config, run: None)
"""


@dataclass(frozen=True)
class Config:
    width: int = 4


@dataclass(frozen=True)
class Other:
    width: int = 4


def experiment(**presets) -> Experiment:
    return Experiment("toy", "a toy", None, presets, lambda config, run: None)


def test_presets_share_one_dataclass():
    with pytest.raises(TypeError, match=r"presets of .* 'toy' must share one dataclass; got \['Config', 'Other'\]"):
        experiment(smoke=Preset(Config(), ""), laptop=Preset(Other(), ""))
    with pytest.raises(TypeError, match=r"must share one dataclass; got \['dict'\]"):
        experiment(smoke=Preset({}, ""))
    with pytest.raises(ValueError, match="presets of experiment 'toy' must name at least one config; got none"):
        experiment()


def test_the_laptop_is_the_default():
    several = experiment(smoke=Preset(Config(1), ""), laptop=Preset(Config(2), ""), paper=Preset(Config(3), ""))
    assert several.default_preset == "laptop"
    assert several.config_type is Config
    assert experiment(tiny=Preset(Config(), ""), big=Preset(Config(), "")).default_preset == "tiny"


def test_every_experiment_of_the_package_is_found_under_its_own_name():
    found = discover()
    assert "in_context_regression" in found
    for name, one in found.items():
        assert one.name == name
        assert {"smoke", "laptop"} <= set(one.presets), name
        assert load_experiment(name) == one


def test_an_experiment_of_ones_own_is_loaded_from_its_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    loaded = load_experiment(str(path))
    assert loaded.summary == "my own"
    assert loaded.presets["smoke"].config.steps == 3
    assert loaded.config_type.__module__ in sys.modules
    monkeypatch.chdir(tmp_path)
    assert load_experiment("mine.py").summary == "my own"


def test_a_near_name_is_suggested():
    with pytest.raises(ValueError, match=r"'in_context_regresion' is not known; did you mean in_context_regression\?"):
        load_experiment("in_context_regresion")


def test_a_far_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'zzz' is not known; there are: .*in_context_regression.*must end in \.py"):
        load_experiment("zzz")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"experiment file .*mine\.py does not exist"),
        ("", r"mine\.py must define EXPERIMENT = jattn\.runs\.Experiment\(\.\.\.\); got None"),
        ("EXPERIMENT = 3", r"mine\.py must define EXPERIMENT .*; got 3"),
    ],
)
def test_a_file_that_defines_none_is_told(tmp_path, content, said):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ValueError, match=said):
        load_experiment(str(tmp_path / "mine.py"))


def test_an_error_in_the_file_is_the_files_own(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_that_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        load_experiment(str(tmp_path / "mine.py"))
