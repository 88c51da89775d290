"""Views: what is shown is what was given; pages hold hostile tokens as text, load nothing, and stay legible."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from jattn.interpret import attention_map, head_grid, token_highlight

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</p></body><iframe src=//evil.example>",
    "&lt;b&gt;",
    "{title}",
    "' onmouseover='alert(1)",
    "$\\nonsense$",
    "\u202egnp.exe",
    "\ud800",
    "\x00\x1b[31m",
]


class Page(HTMLParser):
    """Elements with their attributes, and the text of every span that has a title."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.spans: list[tuple[dict[str, str | None], str]] = []
        self.inside = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "span"
        if self.inside:
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            attributes, text = self.spans[-1]
            self.spans[-1] = attributes, text + data


def svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def luminance(colour: str) -> float:
    """Of #rrggbb, relative, by WCAG 2's definition."""
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def shade(attributes: dict[str, str | None]) -> str:
    return (attributes["style"] or "").removeprefix("background:")


def test_hostile_tokens_are_text() -> None:
    source = token_highlight(HOSTILE, np.linspace(0, 1, 10), labels=HOSTILE[:1], title=HOSTILE[0])
    source.encode()  # no half of a character is left
    page = Page(source)
    assert {tag for tag, _ in page.elements} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span",
    }  # fmt: skip
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") for name in names)
    texts = [text for _, text in page.spans[5:]]
    assert texts[:7] == HOSTILE[:7]
    assert texts[7:] == ["\\u202egnp.exe", "\\ud800", "\\u0000\\u001b[31m"]


def test_pages_open_without_a_network() -> None:
    source = token_highlight(["a", "b"], np.array([0.5, 1]))
    assert not re.search(r"https?:|//|url\(|@import", source)
    assert not {name for _, attributes in Page(source).elements for name in attributes} & {"src", "href", "srcset"}
    assert "default-src 'none'" in source


def test_rows_share_one_scale_and_scores_are_in_titles() -> None:
    scores = np.array([[0.0, 1.0, 2.0], [4.0, 0.5, 1.5]])
    page = Page(token_highlight(["one", " two", "\n"], scores, labels=["head 0", "head 1"]))
    rows = [page.spans[5:8], page.spans[8:11]]
    assert [[text for _, text in row] for row in rows] == [["one", " two", "↵\n"]] * 2
    assert [[float(each["title"] or "") for each, _ in row] for row in rows] == scores.tolist()
    light = np.array([[luminance(shade(each)) for each, _ in row] for row in rows])
    np.testing.assert_array_equal(np.argsort(-light.ravel()), np.argsort(scores.ravel()))  # more is darker
    assert shade(rows[0][0][0]) == "#ffffff"
    assert token_highlight(["one", " two", "\n"], scores, largest=8.0) != token_highlight(["one", " two", "\n"], scores)


def test_text_is_legible_on_every_shade_and_signs_are_told_without_colour() -> None:
    scores = np.linspace(-1, 1, 21)
    page = Page(token_highlight(["token"] * 21, scores))
    row = page.spans[-21:]
    ink = luminance("#1d1d1a")
    contrasts = [(luminance(shade(each)) + 0.05) / (ink + 0.05) for each, _ in row]
    assert min(contrasts) > 4.5  # WCAG 2.2, level AA
    assert [each.get("class") == "below" for each, _ in row] == (scores < 0).tolist()


def test_nothing_but_zeros_and_empty_tokens_are_shown() -> None:
    page = Page(token_highlight(["", "x"], np.zeros(2)))
    assert [text for _, text in page.spans[-2:]] == ["∅", "x"]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: token_highlight([], np.zeros(0)), r"of 0 tokens; got \(0,\)"),
        (lambda: token_highlight(["a"], np.zeros((2, 3))), r"of 1 tokens; got \(2, 3\)"),
        (lambda: token_highlight(["a"], np.zeros((1, 1, 1))), r"\(rows, tokens\)"),
        (lambda: token_highlight(["a"], np.array([np.nan])), "scores must be finite"),
        (lambda: token_highlight(["a"], np.ones(1), labels=["a", "b"]), "labels must be one for each of 1 rows; got 2"),
        (lambda: token_highlight(["a"], np.ones(1), largest=0.0), "largest must be above 0"),
        (lambda: head_grid(np.full((2, 2), np.nan)), "scores must be"),
        (lambda: head_grid(np.array([[np.inf, 1]])), "scores must be"),
        (lambda: attention_map(np.ones((2, 3)), ["a"] * 2), "tokens must be one for each of 3 keys; got 2"),
        (lambda: attention_map(np.ones((3, 2)), ["a"] * 2), "query_tokens must be given"),
        (lambda: attention_map(np.ones((3, 2)), ["a"] * 2, query_tokens=["b"]), "each of 3 queries; got 1"),
        (lambda: attention_map(np.ones((2, 3)), ["a"] * 3, names=["a", "b"]), "names must be one for each of 1 heads"),
        (lambda: attention_map(-np.ones((2, 2)), ["a"] * 2), "finite and at least 0"),
        (lambda: attention_map(np.ones((1, 2, 2, 2)), ["a"] * 2), r"weights must be \(queries, keys\)"),
    ],
    ids=range(14),
)
def test_what_cannot_be_shown_is_refused(call, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        call()


def test_grids_have_every_head_with_its_number() -> None:
    scores = np.array([[0.0, 0.674, 1.0], [0.126, np.nan, 12.34]])
    figure = head_grid(scores, label="retrieval score")
    axis = figure.axes[0]
    assert (len(axis.get_xticks()), len(axis.get_yticks())) == scores.shape
    numbers = {(round(each.get_position()[0]), round(each.get_position()[1])): each.get_text() for each in axis.texts}
    assert numbers == {(0, 0): "0", (0, 1): ".67", (0, 2): "1.00", (1, 0): ".13", (1, 2): "12.3"}
    np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), scores.T)
    assert figure.axes[1].get_ylabel() == "retrieval score"
    assert svg(figure)
    signed = head_grid(np.array([[-0.5, 1.0]])).axes[0].images[0]
    assert signed.norm(0.0) == pytest.approx(0.5)
    assert not head_grid(np.ones((40, 20))).axes[0].texts
    wide, high = head_grid(np.ones((48, 32))).get_size_inches()
    assert wide > high


def test_maps_show_weights_by_their_tokens() -> None:
    weights = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    figure = attention_map(weights[2:], ["the", "$\\nonsense$", "<b>", "\n"])
    axis = figure.axes[0]
    assert [each.get_text() for each in axis.get_xticklabels()] == ["the", "$\\nonsense$", "<b>", "↵"]
    assert [each.get_text() for each in axis.get_yticklabels()] == ["<b>", "↵"]
    np.testing.assert_array_equal(axis.images[0].get_array(), weights[2:])
    assert svg(figure)
    several = attention_map(np.stack([weights] * 3), list("abcd"), names=["0.1", "0.2", "$0"])
    assert [each.get_title() for each in several.axes[:3]] == ["0.1", "0.2", "$0"]
    assert len({each.images[0].get_clim() for each in several.axes[:3]}) == 1
    long = attention_map(np.ones((100, 100)), ["x"] * 100)
    assert len(long.axes[0].get_xticks()) <= 48
    assert max(long.get_size_inches()) < 15
    crossed = attention_map(np.ones((3, 2)), ["a", "b"], query_tokens=["x", "y", "z"])
    assert [each.get_text() for each in crossed.axes[0].get_yticklabels()] == ["x", "y", "z"]
