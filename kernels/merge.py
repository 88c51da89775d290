"""Exact combination of attentions over parts of the keys, by their log-sum-exps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def merge(
    outputs: Float[Array, "parts *batch query_length heads value_width"],
    lses: Float[Array, "parts *batch heads query_length"],
    log_gates: Float[Array, "parts *#batch #heads #query_length"] | None = None,
) -> tuple[Float[Array, "*batch query_length heads value_width"], Float[Array, "*batch heads query_length"]]:
    """Attention over the union of disjoint sets of keys, from the attention over each: Σ_p exp(lse_p - lse) output_p.

    With log gates g_p every weight of part p is multiplied by exp(g_p) before all are normalised, a mixture whose
    gates learn from the scores too; -inf shuts a part out. Parts in which a row reads nothing (lse -inf) count for
    nothing, and a row that reads nothing in any part gives 0 and -inf. Differentiable in everything, any number of
    times. Outputs keep their dtype; sums are float32 or wider.

    Raises:
      ValueError: there is no part, or outputs and lses do not fit.
    """
    if len(outputs) == 0 or outputs.ndim != lses.ndim + 1:
        raise ValueError(
            f"outputs and lses must have at least one part, and outputs one axis more; got {outputs.shape} and "
            f"{lses.shape}"
        )
    heads_last = jnp.moveaxis(lses, -2, -1)
    if outputs.shape[:-1] != heads_last.shape:
        raise ValueError(
            f"outputs and lses must agree in parts, batch, heads and rows; got {outputs.shape}, {lses.shape}"
        )
    logits = lses if log_gates is None else lses + log_gates
    reading = logits > -jnp.inf
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=0))
    highest = jnp.where(highest == -jnp.inf, 0, highest)
    shares = jnp.where(reading, jnp.exp(jnp.where(reading, logits, 0) - jnp.where(reading, highest, 0)), 0)
    total = shares.sum(axis=0)
    something = total > 0
    shares = shares / jnp.where(something, total, 1)
    lse = jnp.where(something, highest + jnp.log(jnp.where(something, total, 1)), -jnp.inf)
    by_row = jnp.moveaxis(shares, -2, -1)[..., None]
    # A part without weight is not seen, whatever stands there.
    parts = jnp.where(by_row > 0, outputs, 0).astype(by_row.dtype)
    return (by_row * parts).sum(axis=0).astype(outputs.dtype), lse
