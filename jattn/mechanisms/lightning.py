"""Gated linear attention with exponential decay, as in TransNormerLLM (Qin et al. 2024, arXiv 2405.17381)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import kernels
from jattn.layers.norms import simple_rms_norm
from jattn.layers.positions import geometric_angles, turn_by_position


def alibi_slopes(heads: int) -> Float[Array, " heads"]:
    """2^(-8 h / heads) for h = 1 to heads (Press et al. 2022, arXiv 2108.12409, section 3).

    If heads is no power of two: those of the power below, then every other one of the power above.
    """
    below = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8.0 * jnp.arange(1, below + 1) / below)
    more = 2.0 ** (-8.0 * jnp.arange(1, 2 * below + 1, 2) / (2 * below))
    return jnp.concatenate([slopes, more[: heads - below]])


def decay_by_layer(heads: int, layer: int, layers: int) -> Float[Array, " heads"]:
    """Log decay -slope_h (1 - layer / (layers - 1) + 10⁻⁵), slopes as ALiBi's: that of the released models.

    The last layer forgets practically nothing.

    Raises:
      ValueError: there is no such layer.
    """
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be from 0 to {layers - 1}; got {layer}")
    return -alibi_slopes(heads) * (1 - layer / max(layers - 1, 1) + 1e-5)


def decay_of_paper(heads: int, layer: int, layers: int) -> Float[Array, " heads"]:
    """Log decay -(8 h / heads) (1 - layer / layers), h = 1 to heads: the paper's text (section 3.2 of 2307.14995).

    Raises:
      ValueError: there is no such layer.
    """
    if not 0 <= layer < layers:
        raise ValueError(f"layer must be from 0 to {layers - 1}; got {layer}")
    return -8.0 * jnp.arange(1, heads + 1) / heads * (1 - layer / layers)


class GatedLinearAttention(nnx.Module):
    """out = (norm(O) ∘ U) W_o with O = lightning attention of SiLU(x W_q), SiLU(x W_k) and x W_v, and U = x W_u.

    The sum over keys is not divided by anything; the norm over all heads' features follows. No biases.

    Attributes:
      log_decay: of each head, fixed: no gradient reaches it (a learned one is said to diverge).
      angles: of relative positions, learned, or None.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        log_decay: Float[Array, " heads"] | None,
        positions: bool = False,
        activation: Callable[[Array], Array] | None = jax.nn.silu,
        gate: bool = True,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width of {width}; got {heads}")
        self.heads, self.activation, self.implementation = heads, activation, implementation
        self.log_decay = None if log_decay is None else nnx.Variable(log_decay)
        self.inner = nnx.Linear(width, (4 if gate else 3) * width, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.angles = nnx.Param(geometric_angles(heads, width // heads)) if positions else None
        self.gate = gate

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        state: kernels.LinearState | None = None,
        *,
        positions: Int[Array, " length"] | None = None,
        padding: Bool[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length width"], kernels.LinearState]:
        """The output, and the state after the last token, with which the next tokens go on.

        Args:
          positions: of the tokens, from 0 by default; only differences count.
          padding: true where a token is none: it is neither read nor remembered.
        """
        batch, length, width = features.shape
        projected = self.inner(features).reshape(batch, length, -1, self.heads, width // self.heads)
        query, key, value = (projected[:, :, part] for part in range(3))
        if self.activation is not None:
            query, key = self.activation(query), self.activation(key)
        if self.angles is not None:
            places = jnp.arange(length) if positions is None else positions
            query, key = (turn_by_position(each, self.angles[...], places) for each in (query, key))
        if padding is not None:
            key, value = (jnp.where(padding[..., None, None], 0, each) for each in (key, value))
        read, state = self._attend(query, key, value, state)
        read = simple_rms_norm(read.reshape(batch, length, width))
        if self.gate:
            read = read * projected[:, :, 3].reshape(batch, length, width)
        return self.outer(read), state

    def _attend(self, query: Array, key: Array, value: Array, state: Any) -> tuple[Array, kernels.LinearState]:
        decay = None if self.log_decay is None else jax.lax.stop_gradient(self.log_decay[...])
        if state is not None and query.shape[1] == 1:
            one = (each[:, 0] for each in (query, key, value))
            read, state = kernels.linear_attention_step(state, *one, log_decay=decay, scale=1.0)
            return read[:, None], state
        return kernels.causal_linear_attention(
            query, key, value, log_decay=decay, scale=1.0, state=state, return_state=True,
            implementation=self.implementation,
        )  # fmt: skip
