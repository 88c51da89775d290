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
    """The implementation that runs, whether in Pallas' interpreter, and why it is this one."""

    name: str
    interpret: bool
    reason: str


@dataclass(frozen=True)
class Operation:
    """A primitive whose implementations are modules of one package, each with a function of the same name.

    Modules of Pallas kernels have also `supports`, of the same arguments or their shapes: why they cannot, or None.
    """

    package: str
    function: str
    arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]
    """From what the primitive is bound with to the function's arguments."""

    def choose(self, platform: str, implementation: str | None, *arrays: Any, **params: Any) -> Choice:
        """The implementation for those operands, or their shapes.

        Raises:
          ValueError: the implementation asked for cannot do it, or not there.
        """
        native = NATIVE.get(platform)
        if implementation == "xla":
            return Choice("xla", False, "asked for")
        if implementation is None and native is None:
            return Choice("xla", False, f"there are no kernels for {platform} alone")
        name = implementation or native or "xla"
        if implementation is not None and platform != "cpu" and implementation != native:
            raise ValueError(f"implementation {implementation!r} cannot run on {platform}")
        arguments, options = self.arguments(*arrays, **params)
        reason = self._module(name).supports(*arguments, **options)
        if implementation is None:
            return Choice(name, False, "made for it") if reason is None else Choice("xla", False, reason)
        if reason is not None:
            raise ValueError(f"implementation {implementation!r} cannot do this: {reason}")
        return Choice(name, platform == "cpu", "asked for")

    def run(self, platform: str, *arrays: Any, implementation: str | None, **params: Any) -> Any:
        """What the primitive is lowered to."""
        choice = self.choose(platform, implementation, *arrays, **params)
        arguments, options = self.arguments(*arrays, **params)
        interpret = {"interpret": True} if choice.interpret else {}
        return getattr(self._module(choice.name), self.function)(*arguments, **options, **interpret)

    def register(self, primitive: Primitive) -> None:
        """Make it what the primitive is lowered to, on every platform."""
        for platform in PLATFORMS:
            rule = mlir.lower_fun(partial(self.run, platform), multiple_results=True)
            mlir.register_lowering(primitive, rule, platform=platform)
        mlir.register_lowering(primitive, mlir.lower_fun(partial(self.run, "any"), multiple_results=True))

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")
