"""Views: maps of attention, grids of heads, and text whose tokens are shaded by scores, as a page without a network."""

import html
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

LABELLED = 48
"""Of more tokens than these along an axis, every second is named, or every third, and so on."""
NUMBERED = 600
"""Of more heads than these, a grid has colours alone."""
HIGH, LOW, NOTHING = (242, 142, 43), (91, 155, 213), (255, 255, 255)
"""Colours of the largest score, of its negative, and of 0: each lighter than what dark text needs to be read on it."""
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Characters that embed, override or isolate the direction of text."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 0; padding: .75rem; background: #fff; color: #1d1d1a; font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1rem; margin: 0 0 .5rem; }}
h2 {{ font-size: .8125rem; font-weight: 500; color: #55554f; margin: 1rem 0 .25rem; }}
h2, p {{ overflow-wrap: anywhere; }}
p {{ margin: 0; font: .875rem/1.9 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }}
.scale {{ font: .8125rem/1.5 system-ui, sans-serif; color: #55554f; }}
span {{ padding: .15em 0; border-radius: .2em; color: #1d1d1a; }}
.below {{ text-decoration: underline dotted; text-underline-offset: .2em; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def attention_map(
    weights: Float[np.ndarray, "*heads queries keys"],
    tokens: Sequence[str],
    *,
    query_tokens: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Who reads whom: a row for each query, a column for each key; several heads side by side, on one scale of colours.

    Args:
      weights: of one head, or of several.
      tokens: of the keys.
      query_tokens: of the queries; by default they are the last of the keys'.
      names: of the heads.

    Raises:
      ValueError: weights that are negative or not finite or of no head, more queries than keys where they are the
        keys' last, or other numbers of tokens or names than the weights have.
    """
    heads = weights[None] if weights.ndim == 2 else weights
    if heads.ndim != 3 or not heads.size:
        raise ValueError(f"weights must be (queries, keys) or (heads, queries, keys), none 0; got {weights.shape}")
    if not np.isfinite(heads).all() or heads.min() < 0:
        raise ValueError("weights must be finite and at least 0")
    count, queries, keys = heads.shape
    if len(tokens) != keys:
        raise ValueError(f"tokens must be one for each of {keys} keys; got {len(tokens)}")
    if query_tokens is None and queries > keys:
        raise ValueError(f"query_tokens must be given where there are more queries than keys; got {queries} and {keys}")
    asking = tokens[keys - queries :] if query_tokens is None else query_tokens
    if len(asking) != queries:
        raise ValueError(f"query_tokens must be one for each of {queries} queries; got {len(asking)}")
    if names is not None and len(names) != count:
        raise ValueError(f"names must be one for each of {count} heads; got {len(names)}")
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    width, height = (1.2 + 0.18 * min(size, LABELLED) for size in (keys, queries))
    figure = Figure(figsize=(across * width + 0.8, down * (height + 0.3)), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    images = []
    for place, (axis, each) in enumerate(zip(axes, heads, strict=False)):
        images.append(axis.imshow(each, cmap="magma_r", vmin=0, vmax=heads.max() or 1, interpolation="nearest"))
        _name_tokens(axis, tokens, "x")
        _name_tokens(axis, asking, "y")
        if names is not None:
            axis.set_title(names[place], fontsize="medium", parse_math=False)
    for axis in axes[count:]:
        axis.set_axis_off()
    figure.colorbar(images[0], ax=list(axes), label="weight")
    return figure


def head_grid(scores: Float[np.ndarray, "layers heads"], *, label: str = "score") -> Figure:
    """A score of every head, as colour and number: layers from left to right, their heads below each other.

    Scores that are not a number stay blank. Where some are negative, the scale's middle is 0.

    Raises:
      ValueError: scores that are not of layers and heads, or none that is finite, or an infinite one.
    """
    if scores.ndim != 2 or not np.isfinite(scores).any() or np.isinf(scores).any():
        raise ValueError(f"scores must be (layers, heads), finite or not a number, not all; got shape {scores.shape}")
    layers, heads = scores.shape
    figure = Figure(figsize=(1.8 + 0.34 * layers, 1.0 + 0.28 * heads), layout="constrained")
    axis = figure.subplots()
    least, most = float(np.nanmin(scores)), float(np.nanmax(scores))
    reach = max(abs(least), abs(most)) or 1.0
    signed = least < 0
    scale = TwoSlopeNorm(0, -reach, reach) if signed else Normalize(0, reach)
    image = axis.imshow(scores.T, cmap="PuOr_r" if signed else "magma_r", norm=scale, aspect="auto")
    axis.set(xlabel="layer", ylabel="head", xticks=range(layers), yticks=range(heads))
    axis.tick_params(labelsize="x-small", length=0)
    if scores.size <= NUMBERED:
        _write_numbers(axis, image, scores.T)
    figure.colorbar(image, ax=axis, label=label)
    return figure


def token_highlight(
    tokens: Sequence[str],
    scores: Float[np.ndarray, "*rows tokens"],
    *,
    labels: Sequence[str] | None = None,
    title: str = "Tokens by score",
    largest: float | None = None,
) -> str:
    """An HTML page with a text whose tokens are shaded by score; several rows, as of heads or layers, are on one scale.

    The page needs no script and no network, and whatever the tokens hold is shown as text. A score is read by keeping
    the pointer on its token. Negative ones have another colour and are underlined; text is legible on every shade.
    Control characters, and those that turn the direction of text, are shown by name.

    Args:
      tokens: as they are to be read: with their spaces.
      labels: of the rows.
      largest: the score that has full colour; by default the largest there is, regardless of sign.

    Raises:
      ValueError: no token or row, other numbers of scores or labels than there are tokens or rows, a score that is not
        finite, or a largest that is not above 0.
    """
    rows = scores[None] if scores.ndim == 1 else scores
    if rows.ndim != 2 or not rows.size or rows.shape[1] != len(tokens):
        raise ValueError(f"scores must be (tokens,) or (rows, tokens), of {len(tokens)} tokens; got {scores.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("scores must be finite")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"labels must be one for each of {len(rows)} rows; got {len(labels)}")
    reach = float(np.abs(rows).max()) if largest is None else largest
    if largest is not None and not 0 < largest < math.inf:
        raise ValueError(f"largest must be above 0 and finite; got {largest}")
    shown = [html.escape(_visible(token)) for token in tokens]
    body = [f"<h1>{html.escape(_visible(title))}</h1>", _scale_of(reach, bool((rows < 0).any()))]
    for place, row in enumerate(rows.tolist()):
        if labels is not None:
            body.append(f"<h2>{html.escape(_visible(labels[place]))}</h2>")
        body.append(f"<p>{''.join(_shaded(*each, reach) for each in zip(shown, row, strict=True))}</p>")
    return PAGE.format(title=html.escape(_visible(title)), body="\n".join(body))


def _visible(text: str) -> str:
    """Text with a sign for what cannot be seen, and nothing that could reorder what stands around it."""
    if not text:
        return "∅"
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    turns = unicodedata.bidirectional(character) in TURNS
    if turns or unicodedata.category(character) in {"Cc", "Cs"}:  # controls; halves of characters, which no file holds
        return f"\\u{ord(character):04x}"
    return character


def _shaded(text: str, score: float, reach: float) -> str:
    below = ' class="below"' if score < 0 else ""
    return f'<span{below} style="background:{_colour(score, reach)}" title="{score:.4g}">{text}</span>'


def _colour(score: float, reach: float) -> str:
    share = min(abs(score) / reach, 1.0) if reach else 0.0
    full = LOW if score < 0 else HIGH
    mixed = (round(nothing + share * (end - nothing)) for nothing, end in zip(NOTHING, full, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _scale_of(reach: float, signed: bool) -> str:
    steps = [reach * step / 4 for step in range(-4 if signed else 0, 5)]
    samples = "".join(_shaded(f" {score:.2g} ", score, reach) for score in dict.fromkeys(steps))
    return f'<p class="scale">{samples} keep the pointer on a token to read its score</p>'


def _name_tokens(axis: Axes, tokens: Sequence[str], which: str) -> None:
    """Name tokens along an axis; of many, some."""
    places = range(0, len(tokens), math.ceil(len(tokens) / LABELLED))
    names = [_visible(tokens[place]).replace("\n", "") for place in places]
    if which == "x":
        axis.set_xticks(places, names, fontsize="x-small", rotation=90, parse_math=False)
    else:
        axis.set_yticks(places, names, fontsize="x-small", parse_math=False)


def _write_numbers(axis: Axes, image: AxesImage, values: Float[np.ndarray, "rows columns"]) -> None:
    """Two digits on every cell, dark on light and light on dark."""
    light = image.to_rgba(values)[..., :3] @ [0.2126, 0.7152, 0.0722]
    for row, column in np.argwhere(np.isfinite(values)):
        ink = "black" if light[row, column] > 0.5 else "white"
        axis.text(column, row, _short(float(values[row, column])), ha="center", va="center", color=ink, fontsize=6.5)


def _short(value: float) -> str:
    """0.67 as .67, and 0 as 0."""
    if value == 0:
        return "0"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
