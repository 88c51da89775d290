"""Mixture-of-head attention: every token runs some of the heads, and weights them (Jin et al. 2024, arXiv 2410.11842).

The first heads are shared, that is on for every token; of the others, the routed ones, each token keeps the best.
Keys and values are those of all heads, for other tokens may read them.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

import kernels
from jattn.layers.auxiliary import AuxiliaryLoss
from jattn.layers.selection import balance_loss, top_k_gates, top_k_mask
from jattn.mechanisms.causal_self_attention import CAUSAL, CausalSelfAttention
from kernels.masks.algebra import Mask

Router = Literal["learned", "query_norm"]
SMALL = 1e-12
"""Added below square roots, whose derivative at 0 is infinite."""


class HeadRouting(NamedTuple):
    """Which heads each token runs, and how they count.

    Attributes:
      gates: weight of every head's output, shared heads first; 0 for a head that is not run.
      probabilities: of the routed heads, before the best are kept.
      chosen: which routed heads are kept.
    """

    gates: Float[Array, "*tokens heads"]
    probabilities: Float[Array, "*tokens routed"]
    chosen: Bool[Array, "*tokens routed"]

    @property
    def active(self) -> Bool[Array, "*tokens heads"]:
        """Which heads are run."""
        shared = self.gates.shape[-1] - self.chosen.shape[-1]
        return jnp.concatenate([jnp.ones((*self.chosen.shape[:-1], shared), bool), self.chosen], axis=-1)

    def balance(self) -> Float[Array, ""]:
        """routed · Σ_i P_i f_i over the routed heads, the released code's (the paper's has no factor `routed`).

        The number of heads a token keeps if use or probabilities are even.
        """
        routed = self.chosen.shape[-1]
        if routed == 0:
            return jnp.zeros((), self.gates.dtype)
        return balance_loss(self.probabilities.reshape(-1, routed), self.chosen.reshape(-1, routed))


def learned_routing(
    shared: Float[Array, "*tokens shared"],
    routed: Float[Array, "*tokens routed"],
    kinds: Float[Array, "*tokens 2"] | None,
    top_k: int,
    *,
    rescale: bool = True,
) -> HeadRouting:
    """Gates from logits: α₁ softmax(shared), and α₂ softmax(routed) where it is among the top_k highest, else 0.

    α = softmax(kinds). Rescaled, as the released code has it: the probabilities of shared heads times their number,
    those of the kept routed heads divided by their sum and times top_k, α times 2. Logits of 0 then give gates of 1.

    Args:
      kinds: what shared and routed heads count for as kinds; None: 1 each.
      rescale: False is the paper's text (equations 6 to 8).

    Raises:
      ValueError: there are fewer than top_k routed heads.
    """
    of_shared, probabilities, chosen = _softmax(shared), _softmax(routed), top_k_mask(routed, top_k)
    of_routed = top_k_gates(routed, top_k, renormalise=rescale) if top_k else jnp.zeros_like(probabilities)
    if rescale:
        of_shared, of_routed = of_shared * shared.shape[-1], of_routed * top_k
    if kinds is not None:
        balance = jax.nn.softmax(kinds, axis=-1) * (2 if rescale else 1)
        of_shared, of_routed = of_shared * balance[..., :1], of_routed * balance[..., 1:]
    return HeadRouting(jnp.concatenate([of_shared, of_routed], axis=-1), probabilities, chosen)


def query_norm_routing(query: Float[Array, "*tokens heads width"], shared: int, top_k: int) -> HeadRouting:
    """Gates without parameters: a token keeps the routed heads in which its queries are longest.

    The logits are the lengths over their standard deviation (n - 1) among the routed heads of the token. Every head
    that runs has weight 1; the gradient is that of the softmax (section 3.4, on continued training).

    Raises:
      ValueError: there are not two routed heads, or fewer than top_k.
    """
    routed = query.shape[-2] - shared
    if shared < 0 or routed < 2:
        raise ValueError(f"shared must leave at least 2 of the {query.shape[-2]} heads to be routed; got {shared}")
    wide = query[..., shared:, :].astype(jnp.promote_types(query.dtype, jnp.float32))
    lengths = jnp.sqrt((wide**2).sum(axis=-1) + SMALL)
    logits = lengths / jnp.sqrt(lengths.var(axis=-1, ddof=1, keepdims=True) + SMALL)
    of_routed = top_k_gates(logits, top_k, quantise=True)
    of_shared = jnp.ones((*of_routed.shape[:-1], shared), of_routed.dtype)
    gates = jnp.concatenate([of_shared, of_routed], axis=-1)
    return HeadRouting(gates, _softmax(logits), top_k_mask(logits, top_k))


def _softmax(logits: Float[Array, "... choices"]) -> Float[Array, "... choices"]:
    """Also of no choices."""
    return jax.nn.softmax(logits, axis=-1) if logits.shape[-1] else logits


def sparse_heads(
    query: Float[Array, "batch length heads width"],
    key: Float[Array, "batch length kv_heads width"],
    value: Float[Array, "batch length kv_heads value_width"],
    active: Bool[Array, "batch length heads"],
    *,
    mask: Mask | None = CAUSAL,
    implementation: str | None = None,
) -> Float[Array, "batch length heads value_width"]:
    """Attention of each head for the tokens that run it, and 0 for the others.

    The queries of a head's tokens are gathered in front, in order, and keep their positions; behind them are rows
    that may read nothing, whose tiles are skipped. Time goes with the number of active pairs, whichever they are;
    there is no capacity that a head could exceed, and nothing is dropped.

    Args:
      mask: of positions, under which nothing is read from ahead: `Causal`, or a `Window` that ends at the query. None:
        every token may read every other.
      implementation: as in `kernels.attention`.
    """
    batch, length, heads = active.shape
    token = jnp.arange(length)[:, None]
    ahead = jnp.cumsum(active, axis=1)
    count = ahead[:, -1:]
    # Where a token goes in its head's list: with those that run it, or behind them.
    rank = jnp.where(active, ahead - 1, count + token - ahead)
    every = jnp.arange(batch)[:, None, None], rank, jnp.arange(heads)
    order = jnp.zeros_like(rank).at[every].set(jnp.broadcast_to(token, rank.shape), unique_indices=True)
    # A query before all keys reads none of them, and one behind them all.
    place = jnp.where(token < count, length if mask is None else order, -1)
    placed = kernels.masks.At(CAUSAL if mask is None else mask, queries=place.swapaxes(1, 2), keys=token[:, 0])
    gathered = jnp.take_along_axis(query, order[..., None], axis=1)
    read = kernels.attention(gathered, key, value, mask=placed, implementation=implementation)
    return jnp.take_along_axis(read, rank[..., None], axis=1)


class MixtureOfHeadsAttention(nnx.Module):
    """y_t = Σ_i g_i(t) H_i(t) W_o,i over the heads: self-attention with a gate for each token and head.

    Attributes:
      balance: the balance loss of the last call, to be added to the task's (times 0.01 in the paper).
      sparse: compute attention only where a head is run, which pays for long inputs; the result is the same.
        `model.set_attributes(sparse=True)` sets it in all layers of a model.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shared: int,
        top_k: int,
        router: Router = "learned",
        rescale: bool = True,
        kv_heads: int | None = None,
        base: float | None = 10000.0,
        causal: bool = True,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Heads `shared` to `heads` are routed, and each token keeps top_k of them.

        Args:
          base: of the angles by which positions turn queries and keys; None: they do not.
          causal: whether a token reads itself and those before it, or all, as patches of an image do.
          router: "learned" (a matrix, no bias; see `learned_routing`) or "query_norm" (`query_norm_routing`).
          rescale: of the learned router's gates.
        """
        routed = heads - shared
        if not 0 <= shared <= heads:
            raise ValueError(f"shared must be from 0 to the {heads} heads; got {shared}")
        if not 0 <= top_k <= routed or shared + top_k == 0:
            raise ValueError(f"top_k must be from 0 to the {routed} routed heads, or 1 if none is shared; got {top_k}")
        if router not in ("learned", "query_norm"):
            raise ValueError(f"router must be 'learned' or 'query_norm'; got {router!r}")
        if router == "query_norm" and (routed < 2 or not rescale):
            raise ValueError("router 'query_norm' needs at least 2 routed heads, and has no gates to leave unscaled")
        self.attention = CausalSelfAttention(
            width, heads, kv_heads=kv_heads, base=base, implementation=implementation, rngs=rngs
        )
        self.shared, self.top_k, self.rescale, self.causal, self.sparse = shared, top_k, rescale, causal, False
        # Shared and routed heads are weighted as kinds only where there are both.
        self.kinds = 2 if shared and top_k else 0
        learned = router == "learned"
        self.router = nnx.Linear(width, self.kinds + heads, use_bias=False, rngs=rngs) if learned else None
        self.balance = AuxiliaryLoss(jnp.zeros(()))

    @classmethod
    def from_multi_head(
        cls,
        attention: CausalSelfAttention,
        *,
        shared: int,
        top_k: int,
        router: Router = "query_norm",
        rescale: bool = True,
    ) -> "MixtureOfHeadsAttention":
        """A layer with the projections of a trained one (its own, not copies), to be tuned further.

        A learned router starts at 0: every head that runs has weight 1, and with all routed heads kept the output
        is that of the given layer.
        """
        made = cls(
            attention.width, attention.heads,
            shared=shared, top_k=top_k, router=router, rescale=rescale, rngs=nnx.Rngs(0),
        )  # fmt: skip
        made.attention = attention
        if made.router is not None:
            made.router.kernel[...] = jnp.zeros_like(made.router.kernel[...])
        return made

    def route(
        self, features: Float[Array, "batch length width"], query: Float[Array, "batch length heads head_dim"]
    ) -> HeadRouting:
        """The heads that each token runs, given the layer's input and the queries made of it."""
        if self.router is None:
            return query_norm_routing(query, self.shared, self.top_k)
        kinds, shared, routed = jnp.split(self.router(features), [self.kinds, self.kinds + self.shared], axis=-1)
        return learned_routing(shared, routed, kinds if self.kinds else None, self.top_k, rescale=self.rescale)

    def __call__(
        self,
        features: Float[Array, "batch length width"],
        *,
        positions: Int[Array, "#batch length"] | Int[Array, " length"] | None = None,
    ) -> Float[Array, "batch length width"]:
        """The output of every token; `positions` as in `CausalSelfAttention`."""
        query, key, value = self.attention.project(features, positions)
        routing = self.route(features, query)
        self.balance[...] = routing.balance().astype(self.balance[...].dtype)
        mask = self.attention.mask() if self.causal else None
        if self.sparse:
            implementation = self.attention.implementation
            read = sparse_heads(query, key, value, routing.active, mask=mask, implementation=implementation)
        else:
            read = self.attention.read(query, key, value, mask)
        gated = (routing.gates[..., None] * read).astype(read.dtype)
        return self.attention.write(gated)
