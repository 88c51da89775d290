"""What to compile: a function, the shapes of its arguments, and how many flops it needs."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Case:
    """A program to compile.

    `arguments` are arrays, `jax.ShapeDtypeStruct`s or trees of them. `flops` is what the mathematics needs, whatever
    the kernel computes besides; None where that is not known. `mesh` names the axes of a mesh of TPUs and their sizes,
    which the function's shardings are of; every device has the arguments whole. None for one device.

    `fit_only` is for whole training steps on TPUs: it is asked whether the program compiles and what memory it needs.
    Kernels are then neither simulated nor dumped, and the compiler makes its least effort at speed.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: int | float | None = None
    mesh: Mapping[str, int] | None = None
    fit_only: bool = False


BASELINES = "kernels.compile.baselines"
OURS = "kernels.compile.attention"
LINEAR = "kernels.compile.linear"
SPARSE = "kernels.compile.sparse"
KERNELS: dict[str, dict[str, str]] = {
    "attention": {"gpu": f"{OURS}:forward", "tpu": f"{OURS}:forward"},
    "attention-backward": {"gpu": f"{OURS}:backward", "tpu": f"{OURS}:backward"},
    "block-sparse-attention": {"gpu": f"{SPARSE}:forward", "tpu": f"{SPARSE}:forward"},
    "block-sparse-attention-backward": {"gpu": f"{SPARSE}:backward", "tpu": f"{SPARSE}:backward"},
    "linear-attention": {"gpu": f"{LINEAR}:forward", "tpu": f"{LINEAR}:forward"},
    "linear-attention-backward": {"gpu": f"{LINEAR}:backward", "tpu": f"{LINEAR}:backward"},
    "jax-tpu-flash": {"tpu": f"{BASELINES}:tpu_flash"},
    "jax-tpu-flash-backward": {"tpu": f"{BASELINES}:tpu_flash_backward"},
    "jax-gpu-mha": {"gpu": f"{BASELINES}:gpu_mha"},
    "jax-gpu-mha-backward": {"gpu": f"{BASELINES}:gpu_mha_backward"},
}
"""Kernels by name: for each kind of target the function, "module:function", that makes the case."""


def find_case(name: str, kind: str) -> str:
    """The "module:function" that a name stands for on a kind of target ("gpu" or "tpu")."""
    if ":" in name:
        return name
    if name not in KERNELS:
        near = difflib.get_close_matches(name, KERNELS, n=4, cutoff=0.5) or sorted(KERNELS)
        raise ValueError(
            f"there is no kernel {name!r}; near it: {', '.join(near)}; or name your own case as module:function"
        )
    if kind not in KERNELS[name]:
        raise ValueError(f"kernel {name!r} is for a {', '.join(KERNELS[name])}, and the target is a {kind}")
    return KERNELS[name][kind]


def load_case(location: str, parameters: Mapping[str, Any]) -> Case:
    """Call the function at "module:function" or "path/to/file.py:function"."""
    place, _, attribute = location.rpartition(":")
    function = getattr(_load_module(place), attribute, None)
    if not callable(function):
        raise ValueError(f"{place} has no function {attribute!r}")
    made: Any = function(**parameters)
    return made if isinstance(made, Case) else Case(*made)


def _load_module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{place} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Keyword arguments from "name=value": integers, true and false are read as such, the rest are strings."""
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"a setting is name=value; got {setting!r}")
        parameters[name] = _parse(text)
    return parameters


def _parse(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        return text
