"""Feed-forward layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn.layers.taps import tap

Activation = Callable[[Array], Array]


class GatedLinearUnit(nnx.Module):
    """(activation(x W₁) ∘ x W₂) W₃ (Shazeer 2020, arXiv 2002.05202, equations 5 and 6). No biases.

    With SiLU it is SwiGLU, with GELU GEGLU; without an activation SGLU (Qin et al. 2023, arXiv 2307.14995).
    Site: hidden.
    """

    def __init__(self, width: int, hidden: int, activation: Activation | None = jax.nn.silu, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, 2 * hidden, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)
        self.activation = activation

    def __call__(self, features: Float[Array, "... width"]) -> Float[Array, "... width"]:
        gate, value = jnp.split(self.inner(features), 2, axis=-1)
        gate = gate if self.activation is None else self.activation(gate)
        return self.outer(tap("hidden", gate * value))


class FeedForward(nnx.Module):
    """activation(x W₁ + b₁) W₂ + b₂. Site: hidden."""

    def __init__(self, width: int, hidden: int, activation: Activation, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, hidden, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, rngs=rngs)
        self.activation = activation

    def __call__(self, features: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return self.outer(tap("hidden", self.activation(self.inner(features))))
