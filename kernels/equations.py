"""Walking through a traced program: what every reader and rewriter of tile functions and masks needs."""

from typing import Any

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "checkpoint", "remat2")


def called(equation: Any) -> tuple[Any, Any] | None:
    """The program that an equation calls as it is, and its constants; None if it calls none."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = equation.params["call_jaxpr" if "call_jaxpr" in equation.params else "jaxpr"]
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def bind(equation: Any, arrays: Any, **changed: Any) -> list[Any]:
    """The results of an equation for those arrays, with some of its parameters changed."""
    bound = equation.primitive.get_bind_params(equation.params | changed)
    functions, options = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before JAX 0.10
    results = equation.primitive.bind(*functions, *arrays, **options)
    return list(results) if equation.primitive.multiple_results else [results]
