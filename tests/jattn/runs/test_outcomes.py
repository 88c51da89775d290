"""What a run leaves: claims, results, figures, views, its record."""

import json
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from toy_runs import CLAIM, toy_run, tree

from jattn.runs import Bar
from jattn.runs.directory import read_verdicts


def test_claims_are_written_as_they_are_settled_and_read_back_the_same(tmp_path):
    second = replace(CLAIM, name="second", bar=Bar(low=0.25, high=0.75))
    with toy_run(tmp_path / "run") as run:
        assert read_verdicts(tmp_path / "run") == []
        first_verdict = run.settle(CLAIM, [0.1, 0.2, 0.3], [2.0, 3.0, 4.0])
        assert read_verdicts(tmp_path / "run") == [first_verdict]
        with pytest.raises(ValueError, match="claim 'first' is settled already"):
            run.settle(CLAIM, 0.1, 2.0)
        second_verdict = run.settle(second, [0.5, 0.5], [np.inf, -np.inf])
    assert first_verdict.held
    assert second_verdict.held
    back = read_verdicts(tmp_path / "run")
    assert back[0] == first_verdict
    assert (back[1].claim, back[1].measured, back[1].held) == (second, second_verdict.measured, True)
    assert np.isnan(back[1].control.mean)
    assert (back[1].control.low, back[1].control.high) == (-np.inf, np.inf)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "run" / "claims.json").read_text(), parse_constant=refuse)


def test_claims_of_an_earlier_process_stay_until_settled_anew(tmp_path):
    others = [replace(CLAIM, name=name) for name in ("second", "third")]
    with suppress(KeyError), toy_run(tmp_path / "run") as run:
        for claim in (CLAIM, *others):
            run.settle(claim, 0.5, 2.0)
        raise KeyError
    with toy_run(tmp_path / "run") as run:
        run.settle(others[0], 0.75, 2.0)
        run.settle(CLAIM, 0.25, 2.0)
        names = {verdict.claim.name: verdict.measured.mean for verdict in read_verdicts(tmp_path / "run")}
        assert names == {"second": 0.75, "first": 0.25, "third": 0.5}
    # Completed: only what this process settled is true of the run.
    assert [verdict.claim.name for verdict in read_verdicts(tmp_path / "run")] == ["second", "first"]


def test_results_are_json(tmp_path):
    with toy_run(tmp_path / "run") as run:
        run.save_results({"slope": 0.1, "by length": [1, 2.5]})
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"slope": 0.1, "by length": [1, 2.5]}


def draw(height: float) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0, height])
    axes.fill_between([0, 1], [0, 1], [1, 2], hatch="//")  # clip paths and hatches get ids
    return figure


def test_figures_are_whole_and_the_same_bytes_again(tmp_path):
    with suppress(KeyError), toy_run(tmp_path / "run") as run:
        path = run.figure("curve", draw(1.0), "What it shows.")
        run.figure("other", draw(2.0), "Another.")
        raise KeyError
    first = path.read_bytes()
    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert tree(tmp_path / "run" / "figures") == {"curve.svg", "other.svg", "captions.json"}
    with toy_run(tmp_path / "run") as run:
        assert run.figure("curve", draw(1.0), "What it shows now.").read_bytes() == first
        captions = json.loads((tmp_path / "run" / "figures" / "captions.json").read_text())
        assert captions == {"curve": "What it shows now.", "other": "Another."}


def test_a_figure_that_cannot_be_drawn_leaves_the_one_before(tmp_path):
    broken = Figure()
    broken.text(0.5, 0.5, r"$\nonsense$")
    with toy_run(tmp_path / "run") as run:
        path = run.figure("curve", draw(1.0), "What it shows.")
        before = path.read_bytes()
        with pytest.raises(ValueError, match="nonsense"):
            run.figure("curve", broken, "Nothing.")
        assert path.read_bytes() == before
        assert json.loads((path.parent / "captions.json").read_text()) == {"curve": "What it shows."}


def test_a_view_is_kept_as_a_figure_is_and_takes_the_place_of_one(tmp_path):
    with toy_run(tmp_path / "run") as run:
        run.figure("curve", draw(1.0), "What it shows.")
        path = run.view("curve", "<p>é", "As a page.")
        assert path.read_text(encoding="utf-8") == "<p>é"
        run.view("text", "<p>", "Another.")
        assert tree(tmp_path / "run" / "figures") == {"curve.html", "text.html", "captions.json"}
        run.figure("text", draw(1.0), "A figure after all.")
        assert tree(tmp_path / "run" / "figures") == {"curve.html", "text.svg", "captions.json"}
        captions = json.loads((tmp_path / "run" / "figures" / "captions.json").read_text())
        assert captions == {"curve": "As a page.", "text": "A figure after all."}


def test_history_is_the_record_so_far(tmp_path):
    with toy_run(tmp_path / "run") as run, run.stage("stage") as stage:
        assert run.history("stage") == {}
        stage.metrics.write(5, {"loss": np.float32(0.1)})
        steps, values = run.history("stage")["loss"]
    assert (steps.tolist(), np.float32(values[0])) == ([5], np.float32(0.1))
