"""Our causal linear attention, as what is compiled."""

import jax
import jax.numpy as jnp

from kernels.compile.baselines import attention_case, gradient
from kernels.compile.case import Case
from kernels.linear.attention import causal_linear_attention


def forward(
    batch: int = 1,
    length: int = 2048,
    heads: int = 4,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    delta: bool = False,
    chunk: int | None = None,
) -> Case:
    """`kernels.causal_linear_attention` with a decay of each head, by the Hebbian or the delta rule."""
    decay = -(2.0 ** -jnp.arange(1.0, heads + 1))
    rate = jnp.full(heads, 0.5) if delta else None

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return causal_linear_attention(query, key, value, log_decay=decay, delta_rate=rate, chunk=chunk)

    shape = (batch, length, heads, head_dim)
    # What has to be multiplied token by token: a state updated, and read.
    return attention_case(attend, shape, dtype, 4.0 * batch * length * heads * head_dim**2)


def backward(**parameters: int | str | bool) -> Case:
    """The gradient of `forward` by query, key and value, and the forward pass it needs."""
    case = gradient(forward(**parameters))  # pyright: ignore[reportArgumentType]
    return Case(case.function, case.arguments, None)
