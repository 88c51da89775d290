"""Changes to activations: at a site, where a selector says, by an operation. All numbers in them are array arguments.

edit("layers.3.attention.head_output", Scale(0.0), Where(heads=mask))
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn.interpret.attention import CalibrateColumns, CalibrateSinks, DropColumns, OverrideRow
from kernels.trees import register_dataclass

During = Literal["all", "prompt", "decode"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Set:
    """The activation becomes this value, which broadcasts to it: a constant, or what another run had there."""

    value: Array | float

    def __call__(self, activation: Array) -> Array:
        return jnp.broadcast_to(self.value, activation.shape)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Add:
    """Something that broadcasts to the activation is added: steering."""

    value: Array | float

    def __call__(self, activation: Array) -> Array:
        return activation + self.value


@register_dataclass
@dataclass(frozen=True, eq=False)
class Scale:
    """The activation is multiplied by a factor that broadcasts to it."""

    factor: Array | float

    def __call__(self, activation: Array) -> Array:
        return activation * self.factor


@register_dataclass
@dataclass(frozen=True, eq=False)
class Rescale:
    """The activation keeps its direction and gets this norm, of its last axis; an activation of zeros stays.

    Norms are computed in float32, as those of massive activations are too coarse in less.
    """

    norm: Array | float

    def __call__(self, activation: Array) -> Array:
        wide = activation.astype(jnp.promote_types(activation.dtype, jnp.float32))
        squares = jnp.square(wide).sum(axis=-1, keepdims=True)
        here = jnp.sqrt(jnp.where(squares > 0, squares, 1))
        return wide * (self.norm / here)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mean:
    """The activation becomes its mean over some axes; 0 is the batch, 1 the positions of features and heads."""

    axes: tuple[int, ...] = (0,)

    def __call__(self, activation: Array) -> Array:
        return jnp.broadcast_to(activation.mean(axis=self.axes, keepdims=True), activation.shape)


@register_dataclass
@dataclass(frozen=True, eq=False)
class Resample:
    """Each text of the batch gets the activation of another: of text order[i] the i-th."""

    order: Int[Array, " batch"]

    def __call__(self, activation: Array) -> Array:
        return activation[self.order]


Operation = Set | Add | Scale | Rescale | Mean | Resample
AttentionChange = DropColumns | CalibrateColumns | CalibrateSinks | OverrideRow


@register_dataclass
@dataclass(frozen=True, eq=False)
class Where:
    """Which part of an activation changes; what is None does not restrict.

    Attributes:
      batch: which texts.
      positions: which tokens, alike for all texts or for each; of scores and weights, which queries.
      heads: which heads, of activations that have them: as many as the activation has, so that a key or value shared
        by several query heads is never changed for one of them ("key_of_head" and "value_of_head" can be).
    """

    batch: Bool[Array, " batch"] | None = None
    positions: Bool[Array, "*batch length"] | None = None
    heads: Bool[Array, " heads"] | None = None

    def on(self, site: str, activation: Array) -> Array | bool:
        """True where the activation of that site changes.

        Raises:
          ValueError: the activation has no heads, or another number of texts, tokens or heads.
        """
        length_axis, head_axis = (2, 1) if _is_quadratic(site) else (1, 2)
        chosen: Array | bool = True
        for name, mask, axes in (
            ("batch", self.batch, (0,)),
            ("positions", self.positions, (0, length_axis)),
            ("heads", self.heads, (head_axis,)),
        ):
            if mask is None:
                continue
            mask = jnp.asarray(mask)
            axes = axes[-mask.ndim :]
            if name == "heads" and activation.ndim < 4:
                raise ValueError(f"heads cannot be chosen at {site}, whose activation has the shape {activation.shape}")
            if mask.shape != (want := tuple(activation.shape[axis] for axis in axes)):
                raise ValueError(f"{name} must have the shape {want} at {site}; got {mask.shape}")
            shape = [1] * activation.ndim
            for axis in axes:
                shape[axis] = activation.shape[axis]
            chosen = chosen & mask.reshape(shape)
        return chosen


@register_dataclass
@dataclass(frozen=True, eq=False)
class Edit:
    """An operation at a site, where a selector says; at a site that is an attention function, a change of it.

    Attributes:
      site: its name, in full.
      during: "prompt" and "decode" leave alone what reads one token at a time, or all else.
    """

    site: str = field(metadata={"static": True})
    operation: Operation | AttentionChange
    where: Where
    during: During = field(default="all", metadata={"static": True})

    def apply(self, activation: Array) -> Array:
        """The activation with the change made."""
        if isinstance(self.operation, AttentionChange):
            raise ValueError(f"{self.site} is no attention function, which {type(self.operation).__name__} changes")
        if not self._happens(activation.shape[2 if _is_quadratic(self.site) else 1]):
            return activation
        changed = jnp.asarray(self.operation(activation), activation.dtype)
        return jnp.where(self.where.on(self.site, activation), changed, activation)

    def around(self, attention: Callable[..., Any]) -> Callable[..., Any]:
        """The attention function with the change made."""
        change = self.operation
        if not isinstance(change, AttentionChange):
            raise ValueError(f"{self.site} is a function, which {type(change).__name__} does not change")

        def changed(query: Array, *arguments: Any, **options: Any) -> Any:
            function = change(attention) if self._happens(query.shape[1]) else attention
            return function(query, *arguments, **options)

        return changed

    def _happens(self, tokens: int) -> bool:
        return self.during == "all" or (self.during == "decode") == (tokens == 1)


def edit(
    site: str, operation: Operation | AttentionChange, where: Where | None = None, *, during: During = "all"
) -> Edit:
    """A change for `capture(edits=...)`.

    Args:
      operation: `Set`, `Add`, `Scale`, `Rescale`, `Mean`, `Resample` of an activation; at "...attention.attention",
        the function that reads, `DropColumns`, `CalibrateColumns`, `CalibrateSinks`, `OverrideRow`.
      where: which part of the activation; None: all of it.
      during: "prompt" and "decode" leave alone what reads one token at a time, or all else.

    Raises:
      ValueError: an unknown `during`, or a selector for a change of attention, which has its own.
    """
    if during not in ("all", "prompt", "decode"):
        raise ValueError(f"during must be among all, prompt, decode; got {during!r}")
    if where is not None and isinstance(operation, AttentionChange):
        raise ValueError(f"where must be None for {type(operation).__name__}, which says itself what it changes")
    return Edit(site, operation, Where() if where is None else where, during)


def _is_quadratic(site: str) -> bool:
    return site.rpartition(".")[2] in ("scores", "weights")


HeadMode = Literal["zero", "uniform", "mean", "resample"]


def mask_heads(
    mask: Bool[Array, "layers heads"],
    mode: HeadMode = "zero",
    *,
    means: Float[Array, "layers heads head_dim"] | None = None,
    order: Int[Array, " batch"] | None = None,
    during: During = "all",
    path: str = "layers.{}.attention",
) -> list[Edit]:
    """Edits that switch heads off, one for each layer; a sweep over masks is one program.

    Modes: "zero": the head's output is 0. "uniform": it reads all that it may read alike, as its queries become 0 (what
    the released code of Wu et al. 2024, arXiv 2404.15574, does). "mean": its output is the given mean. "resample": its
    output is that of another text.

    Args:
      mask: true for heads that are switched off.
      means: for "mean".
      order: for "resample"; text i gets the output of text order[i].
      path: of the attention of a layer.

    Raises:
      ValueError: an unknown mode, or one that lacks its argument.
    """
    if mode not in ("zero", "uniform", "mean", "resample"):
        raise ValueError(f"mode must be among zero, uniform, mean, resample; got {mode!r}")
    if (mode == "mean") != (means is not None):
        raise ValueError(f"means must be given for the mode mean, and no other; got mode {mode!r}")
    if (mode == "resample") != (order is not None):
        raise ValueError(f"order must be given for the mode resample, and no other; got mode {mode!r}")

    def operation(layer: int) -> Operation:
        if means is not None:
            return Set(means[layer])
        return Set(0.0) if order is None else Resample(order)

    site = "query" if mode == "uniform" else "head_output"
    return [
        edit(f"{path.format(layer)}.{site}", operation(layer), Where(heads=mask[layer]), during=during)
        for layer in range(len(mask))
    ]
