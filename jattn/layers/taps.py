"""Taps: named places in a model where an activation can be seen or changed while the model is traced.

A model calls `tap` where an activation has its name, within the `scope` of the part that computes it, so that
`tap("query", query)` in the attention of layer 3 is the site "layers.3.attention.query". Without a handler a tap
returns what it is given and leaves nothing in the compiled program. A handler is there for the length of an
`intercept`, in this thread or task alone; one inside another comes before it. It must be there while the model is
traced: a function that was compiled before does not see it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxtyping import Array

from kernels.statistics.requests import Request


class Handler:
    """What sees the sites of a model while it is traced; as it is here it changes nothing and asks for nothing."""

    def __call__(self, site: str, value: Any) -> Any:
        """The value to go on with: the very object given, or another of the same shape and dtype."""
        return value

    def wants(self, site: str) -> bool:
        """Whether to make an activation that the model does without, such as attention weights."""
        return False

    def statistics(self, site: str) -> Sequence[Request]:
        """What to tell about the attention weights at a site; empty: nothing."""
        return ()

    def instead(self, site: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function to call at a site in place of the given one, of the same arguments and results."""
        return function


_handlers: ContextVar[tuple[Handler, ...]] = ContextVar("handlers", default=())
_path: ContextVar[tuple[str, ...]] = ContextVar("path", default=())
_in_loop: ContextVar[bool] = ContextVar("in_loop", default=False)


@contextmanager
def intercept(handler: Handler) -> Iterator[None]:
    """Give every site that is traced inside to the handler, and then to those around it."""
    token = _handlers.set((handler, *_handlers.get()))
    try:
        yield
    finally:
        _handlers.reset(token)


@contextmanager
def scope(*names: str | int) -> Iterator[None]:
    """Names that begin those of the sites inside, after the names of scopes around."""
    token = _path.set((*_path.get(), *map(str, names)))
    try:
        yield
    finally:
        _path.reset(token)


@contextmanager
def loop() -> Iterator[None]:
    """The body of a compiled loop: sites inside are traced once for all rounds, so that nothing of them can be kept."""
    token = _in_loop.set(True)
    try:
        yield
    finally:
        _in_loop.reset(token)


def in_loop() -> bool:
    """Whether a site is in the body of a compiled loop."""
    return _in_loop.get()


def handled() -> bool:
    """Whether any handler sees what is traced now."""
    return bool(_handlers.get())


def tap(name: str, value: Any) -> Any:
    """An activation as the handlers return it; without one, as it is.

    Raises:
      ValueError: what a handler returns has other shapes or dtypes; names the site.
    """
    for handler in _handlers.get():
        given = handler(_site(name), value)
        if given is not value and isinstance(value, Array):
            _check_alike(_site(name), value, given)
        value = given
    return value


def wanted(name: str) -> bool:
    """Whether a handler asks for an activation that costs something to make."""
    return any([handler.wants(_site(name)) for handler in _handlers.get()])  # every one of them is told of the site


def asked(name: str) -> Sequence[Request]:
    """The statistics of attention weights that the handlers ask for at a site."""
    requests: list[Request] = [request for handler in _handlers.get() for request in handler.statistics(_site(name))]
    return tuple(dict.fromkeys(requests))


def replaced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that the handlers want called at a site; without one, the given one."""
    for handler in _handlers.get():
        function = handler.instead(_site(name), function)
    return function


def _site(name: str) -> str:
    return ".".join((*_path.get(), name))


def _check_alike(site: str, value: Array, given: Any) -> None:
    if getattr(given, "shape", None) != value.shape or getattr(given, "dtype", None) != value.dtype:
        raise ValueError(
            f"{site} must stay {value.dtype} of shape {value.shape}; "
            f"the handler returned {getattr(given, 'dtype', type(given))} of shape {getattr(given, 'shape', None)}"
        )
