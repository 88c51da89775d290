"""Running a model while looking at its sites and changing what is there."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from jaxtyping import Array

from jattn.interpret.edit import Edit
from jattn.layers.taps import Handler, in_loop, intercept
from kernels.statistics.requests import Request


class Captured(NamedTuple):
    """What a model returned, and what was asked for, by site.

    Attributes:
      output: of the model.
      sites: activations, as they are after edits; of attention weights, `kernels.Statistics`.
    """

    output: Any
    sites: dict[str, Any]


def capture(
    model: Callable[..., Any],
    *inputs: Any,
    sites: Iterable[str] = (),
    statistics: Mapping[str, Sequence[Request]] | None = None,
    edits: Iterable[Edit] = (),
    **options: Any,
) -> Captured:
    """Run model(*inputs, **options), return with its output what is at some sites, and change what is at others.

    The model is one of `jattn.models`, or any function of arrays that calls `jattn.layers.taps.tap`. It must be traced
    within the call: give the model, not a compiled function of it, and compile what calls `capture`. Edits happen in
    the order given; what they hold are ordinary arrays, so that other numbers need no other program.

    Capturing adds no operation to what leads to the output: not a bit of it changes, but for what XLA rounds otherwise
    where it fuses otherwise. Statistics are made by the same walk over the weights as the output, which may then be
    rounded otherwise too.

    Args:
      sites: names, or shell patterns such as "layers.*.residual". Asking for "...weights" or "...scores" by name makes
        them, in memory quadratic in length.
      statistics: what to tell about attention weights, by patterns of sites that end in "statistics": computed as they
        are read by, in memory linear in length (`kernels.statistics.requests`).
      edits: see `jattn.interpret.edit`.

    Raises:
      ValueError: a pattern or an edit whose site the model does not have; tells the sites most like it. Or what is
        asked for is within a compiled loop, such as that of decoding, where it can be changed only.
    """
    handler = _Capture(tuple(sites), dict(statistics or {}), tuple(edits))
    with intercept(handler):
        output = model(*inputs, **options)
    handler.check()
    return Captured(output, handler.found)


class _Capture(Handler):
    """Keeps what is asked for and applies edits; knows at the end what was never met."""

    def __init__(self, sites: tuple[str, ...], statistics: dict[str, Sequence[Request]], edits: tuple[Edit, ...]):
        self.sites, self.requests, self.edits = sites, statistics, edits
        self.found: dict[str, Any] = {}
        self.met: set[str] = set()

    def __call__(self, site: str, value: Any) -> Any:
        self.met.add(site)
        if isinstance(value, Array):
            for edit in self.edits:
                if edit.site == site:
                    value = edit.apply(value)
        if any(fnmatchcase(site, pattern) for pattern in (*self.sites, *self.requests)):
            if in_loop():
                raise ValueError(
                    f"{site} is within a loop, as of decoding, and cannot be kept; run the model over the text"
                )
            self.found[site] = value
        return value

    def wants(self, site: str) -> bool:
        self.met.add(site)
        if any(edit.site == site for edit in self.edits):
            return True
        # "layers.3.attention.*" is what is there, not what could be made.
        named = (pattern for pattern in self.sites if pattern.rpartition(".")[2] == site.rpartition(".")[2])
        return any(fnmatchcase(site, pattern) for pattern in named)

    def statistics(self, site: str) -> Sequence[Request]:
        self.met.add(site)
        return next((ask for pattern, ask in self.requests.items() if fnmatchcase(site, pattern)), ())

    def instead(self, site: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.met.add(site)
        for edit in self.edits:
            if edit.site == site:
                function = edit.around(function)
        return function

    def check(self) -> None:
        """Refuse to have done nothing about what was asked for."""
        for pattern in (*self.sites, *self.requests, *(edit.site for edit in self.edits)):
            if not any(fnmatchcase(site, pattern) for site in self.met):
                near = difflib.get_close_matches(pattern, sorted(self.met), n=5, cutoff=0.3)
                raise ValueError(f"site {pattern!r} is not in the model; most like it: {', '.join(near) or 'none'}")
