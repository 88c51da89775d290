"""Which implementation of an operation runs: chosen when a program is lowered, by the platform it is lowered for.

So one traced function runs, compiles and exports for CPU, CUDA and TPU alike.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import mlir

from kernels.schedule import Tiles
from kernels.tile_table import device_kind, find_tiles

NAMES = ("reference", "xla", "gpu", "tpu")
NATIVE = {"cuda": "gpu", "tpu": "tpu"}
"""Platforms that have kernels of their own; all others, and what those kernels cannot do, get `xla`."""
PLATFORMS = ("cpu", *NATIVE)


def check_name(implementation: str | None) -> None:
    """Raise ValueError unless it names an implementation, or is None for the platform's own."""
    if implementation is not None and implementation not in NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(NAMES)}; got {implementation!r}")


@dataclass(frozen=True)
class Choice:
    """The implementation that runs, in which tiles (None: its own rule), whether in Pallas' interpreter, and why it."""

    name: str
    tiles: Tiles | None
    interpret: bool
    reason: str


@dataclass(frozen=True)
class Operation:
    """A primitive whose implementations are modules of one package, each with a function of the same name.

    Modules of Pallas kernels have also `supports`, of the same arguments or their shapes: why they cannot, or None.
    The primitive's first operand is the query; `sizes`, `tiles` and `implementation` are among its parameters.
    """

    package: str
    function: str
    arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    """From what the primitive is bound with to the function's arguments."""

    def choose(self, platform: str, *arrays: Any, implementation: str | None, **params: Any) -> Choice:
        """The implementation for those operands, or their shapes.

        Raises:
          ValueError: the implementation asked for cannot do it, or not there.
        """
        native = NATIVE.get(platform)
        if implementation == "xla" or (implementation is None and native is None):
            reason = "asked for" if implementation else f"the default on {platform}"
            return Choice("xla", self._tiles(platform, "xla", *arrays, **params), False, reason)
        if implementation is not None and platform != "cpu" and implementation != native:
            raise ValueError(f"implementation {implementation!r} cannot run on {platform}")
        name = implementation or native or "xla"
        tiles = self._tiles(platform, name, *arrays, **params)
        arguments, options = self.arguments(*arrays, **params | {"tiles": tiles})
        unable = self._module(name).supports(*arguments, **options)
        if implementation is None:
            if unable is None:
                return Choice(name, tiles, False, f"made for {platform}")
            return Choice("xla", self._tiles(platform, "xla", *arrays, **params), False, f"{name} cannot do {unable}")
        if unable is not None:
            raise ValueError(f"implementation {implementation!r} cannot do {unable}")
        return Choice(name, tiles, platform == "cpu", "asked for")

    def run(self, platform: str, *arrays: Any, implementation: str | None, **params: Any) -> Any:
        """What the primitive is lowered to."""
        choice = self.choose(platform, *arrays, implementation=implementation, **params)
        arguments, options = self.arguments(*arrays, **params | {"tiles": choice.tiles})
        interpret = {"interpret": True} if choice.interpret else {}
        return getattr(self._module(choice.name), self.function)(*arguments, **options, **interpret)

    def register(self, primitive: Primitive) -> None:
        """Make it what the primitive is lowered to, on every platform."""
        for platform in PLATFORMS:
            rule = mlir.lower_fun(partial(self.run, platform), multiple_results=True)
            mlir.register_lowering(primitive, rule, platform=platform)
        mlir.register_lowering(primitive, mlir.lower_fun(partial(self.run, "any"), multiple_results=True))

    def _tiles(
        self, platform: str, name: str, query: Any, *_: Any, sizes: tuple[int, int], tiles: Tiles | None, **__: Any
    ) -> Tiles | None:
        """The tiles asked for, else those of the device's table, else None, which leaves them to the implementation."""
        if tiles is not None:
            return tiles
        kind = device_kind(platform)
        return find_tiles(kind, self.function, name, query.shape[-1], query.dtype, max(sizes))

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")
