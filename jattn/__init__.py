"""jattn: attention, and optimisation inside optimisation, taken apart in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels import attention, explain, masks

__version__ = "0.1.0"
__all__ = ["attention", "explain", "masks"]


def __getattr__(name: str) -> Any:
    # JAX takes a second to import: it is, when something that needs it is asked for.
    if name in __all__:
        import kernels

        return getattr(kernels, name)
    raise AttributeError(f"module 'jattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
