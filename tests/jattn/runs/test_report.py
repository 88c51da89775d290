"""The report page: self-contained, escaped, and complete for runs of every kind."""

import base64
import json
import re
from contextlib import closing, suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jattn.runs import Bar, Claim, Experiment, Preset, RunError, open_run
from jattn.runs.metrics import MetricRecord
from jattn.runs.report import write_report

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "col", "br"}


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    clip: float | None = None


@dataclass(frozen=True)
class Config:
    heads: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    note: str = HOSTILE


EXPERIMENT = Experiment("toy", "a toy", None, {"smoke": Preset(Config(), "seconds")}, lambda config, run: None)
HELD = Claim("held claim", "The loss is at most one & small.", "0.5 (Table 1)", Bar(high=1.0), "an untrained model")
MISSED = Claim("missed claim", f"It generalises {HOSTILE}.", "“well”", Bar(low=0.9), "chance")


class Page(HTMLParser):
    """What tests ask of a page: its elements with their attributes, its text, and whether every tag is closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.open_tags = "", []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def open_toy(directory: Path):
    return open_run(EXPERIMENT, "smoke", Config(), directory)


def write_metrics(directory: Path, stage: str, rows: list[dict]) -> None:
    with closing(MetricRecord(directory / "metrics" / f"{stage}.jsonl", stage)) as record:
        for step, row in enumerate(rows):
            record.write(step, row)


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """A completed run with everything a run can have, hostile text included."""
    with open_toy(tmp_path / "20260101-full") as run:
        rows = [
            {
                "loss": np.float32(1 + step),
                "norm": np.array([1.0, 2.0 + step, -1.0], np.float32),
                "eval/risk": np.nan if step == 2 else 1.0,
                "eval/maps": np.ones((3, 2, 2)),
            }
            for step in range(4)
        ]
        write_metrics(run.directory, "first", rows)
        for name in ("b", "a"):
            figure = Figure()
            figure.subplots().plot([1, 2])
            run.figure(name, figure, f"Figure {name}, {HOSTILE}")
        run.settle(HELD, [0.4, 0.5, 0.6], [2.0, 2.1])
        run.settle(MISSED, [0.2, 0.3], 0.1, "too few steps")
        run.save_results({"curve": [1.5, 2.5], "text": HOSTILE})
    return tmp_path / "20260101-full"


@pytest.fixture
def killed_run(tmp_path: Path) -> Path:
    with open_toy(tmp_path / "killed"):
        status = (tmp_path / "killed" / "status.json").read_text()
    (tmp_path / "killed" / "status.json").write_text(status)  # as it is left when nobody gets to say how it ended
    return tmp_path / "killed"


@pytest.fixture
def failed_run(tmp_path: Path) -> Path:
    with suppress(ValueError), open_toy(tmp_path / "failed"):
        raise ValueError(f"{HOSTILE} no such file: \udce9")
    return tmp_path / "failed"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "reports" / "report.html"


def test_page_loads_nothing_and_runs_nothing(full_run, out):
    write_report([full_run], out)
    page, source = Page(out), out.read_text()
    assert not page.all("script")
    assert "@import" not in source
    assert "url(" not in source
    links = [attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_untrusted_text_is_escaped(full_run, failed_run, out):
    write_report([full_run, failed_run], out)
    assert "<script" not in out.read_text()
    page = Page(out)
    # the config, a statement, two captions and the results; an error's message, which is no valid Unicode
    assert page.text.count(HOSTILE) == 7
    assert "no such file: \\udce9" in page.text


def test_page_is_well_formed_and_structured(full_run, killed_run, out):
    write_report([full_run, killed_run], out)
    page = Page(out)
    assert page.open_tags == []
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert "2 runs of toy" in re.findall("<title>(.*)</title>", out.read_text())[0]
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in header for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))


def test_every_claim_is_shown_with_its_verdict(full_run, out):
    write_report([full_run], out)
    text = " ".join(Page(out).text.split())
    for claim in (HELD, MISSED):
        for part in (claim.name, claim.statement, claim.paper, str(claim.bar), claim.control):
            assert part in text
    assert "1 of 2 held" in text
    assert "0.5 [0.2516, 0.7484]" in text
    assert "Not held: the measurement misses the bar; too few steps." in text
    assert text.count("Not held:") == 1


def test_figures_come_in_the_captions_order(full_run, out):
    write_report([full_run], out)
    figures = [image for image in Page(out).all("img") if image["alt"].startswith("Figure")]
    assert [image["alt"] for image in figures] == [f"Figure b, {HOSTILE}", f"Figure a, {HOSTILE}"]
    embedded = base64.b64decode(figures[0]["src"].removeprefix("data:image/svg+xml;base64,"))
    assert embedded == (full_run / "figures" / "b.svg").read_bytes()


def test_views_stand_among_figures_in_frames_that_run_and_load_nothing(full_run, out):
    before = Figure()
    before.subplots()
    page = f"<!DOCTYPE html>\n<p title='\"&quot;'>{HOSTILE} <img src=//evil.example></p>"
    with open_toy(full_run) as run:
        run.figure("turned", before, "What was a figure.")
        assert run.view("turned", page, "What was a figure.") == full_run / "figures" / "turned.html"
        assert not (full_run / "figures" / "turned.svg").exists()
        run.view("long", "<p>" + "word " * 150, f"A long one, {HOSTILE}")
        run.view("huge", "x<br>\n" * 10_000, "A huge one.")
    write_report([full_run], out)
    report = Page(out)
    frames = report.all("iframe")
    assert [frame["title"] for frame in frames] == ["What was a figure.", f"A long one, {HOSTILE}", "A huge one."]
    assert frames[0]["srcdoc"] == page
    for frame in frames:
        assert frame["sandbox"] is None  # no value allows nothing: no script, no form, no way out of the frame
        assert "src" not in frame
    assert re.search("Content-Security-Policy\" content=\"default-src 'none'", out.read_text())
    assert not report.all("script")
    assert "<script" not in out.read_text()
    assert "evil" not in "".join(image["src"] for image in report.all("img"))
    heights = [int(re.fullmatch(r"height: (\d+)rem", frame["style"])[1]) for frame in frames]
    assert heights[0] == 8 < heights[1] < heights[2] == 32
    assert len([image for image in report.all("img") if image["alt"].startswith("Figure")]) == 2


def test_curves_show_scalars_and_seeds_and_name_the_rest(full_run, out):
    write_report([full_run], out)
    page = Page(out)
    curves = [image["alt"] for image in page.all("img") if image["alt"].startswith("Curve")]
    assert curves == [
        "Curve of loss: 4 at step 3",
        "Curve of norm: 1.667 (-1 to 5 over 3 seeds) at step 3",
        "Curve of risk: 1 at step 3; not finite at 1 of 4 points",
    ]
    assert "not one number a seed: eval/maps." in page.text
    assert page.text.index("Training\n") < page.text.index("norm") < page.text.index("Evaluation\n")


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [np.nan, np.nan],
        [1e-30, 1e30],
        [0.0, np.inf],
        [3, 3],
        [True, False],
        [[True, False]],
        [[np.inf, 1.0]],
        [1.0, 1.0001],
        [1.0, 50.0],
    ],
    ids=str,
)
def test_curves_of_odd_values_are_drawn(values, tmp_path, out):
    with open_toy(tmp_path / "odd"):
        write_metrics(tmp_path / "odd", "first", [{"$x_": value} for value in values])
    write_report([tmp_path / "odd"], out)
    assert len(Page(out).all("img")) == 1


def test_config_and_results_are_complete(full_run, out):
    write_report([full_run], out)
    text = Page(out).text
    for field in ("heads[1, 2]", "inner.rate0.001", "inner.clipnull", "note"):
        assert field in text
    assert '"curve": [ 1.5, 2.5 ]' in text


def test_an_environment_that_changed_is_shown_again(full_run, out):
    path = full_run / "environment.json"
    (session,) = json.loads(path.read_text())
    first = session | {"git": {"commit": "abc123", "dirty": True}, "devices": ["cpu"]}
    moved = first | {"git": None, "devices": ["H100", "H100"]}
    path.write_text(json.dumps([first, first | {"command": ["jattn", "resume"]}, moved]))
    write_report([full_run], out)
    text = Page(out).text
    assert text.count("abc123") == text.count("with uncommitted changes") == 1
    assert text.count("2x H100") == text.count("not known") == 1
    assert "jattn resume" in text
    assert "The environment changed between sessions" in text


def test_killed_and_failed_runs_say_so(killed_run, failed_run, out):
    write_report([killed_run, failed_run], out)
    text = Page(out).text
    assert "killed" in text
    assert "The process ended without saying why" in text
    assert "ValueError: " in text
    assert text.count("No claim is settled.") == 2


def test_summary_links_lead_to_the_sections(full_run, killed_run, failed_run, out):
    write_report([full_run, killed_run, failed_run, full_run], out)
    page = Page(out)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"].removeprefix("#") for link in page.all("a")]
    assert set(targets) <= set(ids)
    assert [target for target in targets if target != "top"] == [section["id"] for section in page.all("article")]
    assert "1/2" in page.text


def test_a_lone_run_has_no_summary(killed_run, out):
    write_report([killed_run], out)
    assert not Page(out).all("a")
    assert "<title>toy, smoke, killed</title>" in out.read_text()


def test_a_run_that_left_only_its_config_is_shown(tmp_path, out):
    frozen = {"experiment": "toy", "preset": "smoke", "config": {}}
    (tmp_path / "config.json").write_text(json.dumps(frozen))
    write_report([tmp_path], out)
    assert "The run left no status." in Page(out).text


def test_same_runs_give_the_same_bytes(full_run, out):
    write_report([full_run], out)
    before = out.read_bytes()
    write_report([full_run], out)
    assert out.read_bytes() == before


def test_no_directory_is_refused(out):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], out)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("claims.json", '[{"claim": 1}]'),
        ("environment.json", "[1]"),
        ("metrics/first.jsonl", '{"step": 1, "loss": 1}\nnonsense\n'),
        ("metrics/first.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, "loss": [1, 2]}\n'),
        ("figures/captions.json", '{"absent": "a figure"}'),
        ("figures/a.html", "\udce9"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, full_run, out):
    (full_run / name).write_text(content, errors="surrogateescape")
    with pytest.raises(RunError, match=re.escape(str(full_run))):
        write_report([full_run], out)
    assert not out.exists()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None], ids=["empty", "file", "absent"])
def test_a_directory_that_is_no_run_is_refused(make, tmp_path, out):
    make(tmp_path / "nothing")
    with pytest.raises(RunError, match="nothing"):
        write_report([tmp_path / "nothing"], out)
