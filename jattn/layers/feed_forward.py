"""Feed-forward layers."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class SimpleGatedLinearUnit(nnx.Module):
    """(x W₁ ∘ x W₂) W₃: a gated linear unit whose gate has no activation (Qin et al. 2023, arXiv 2307.14995, SGLU)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, 2 * hidden, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, features: Float[Array, "... width"]) -> Float[Array, "... width"]:
        gate, value = jax.numpy.split(self.inner(features), 2, axis=-1)
        return self.outer(gate * value)


class SwiGLU(nnx.Module):
    """(SiLU(x W₁) ∘ x W₂) W₃ (Shazeer 2020, arXiv 2002.05202, equation 6). No biases."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(width, 2 * hidden, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, features: Float[Array, "... width"]) -> Float[Array, "... width"]:
        gate, value = jax.numpy.split(self.inner(features), 2, axis=-1)
        return self.outer(jax.nn.silu(gate) * value)
