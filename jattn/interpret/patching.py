"""Path patching: what a head contributes through some paths and not through others; and its gradient shortcut.

The effect of a sender on receivers is found in two runs (Wang et al. 2022, arXiv 2211.00593; Merullo et al. 2024,
arXiv 2310.08744): a clean run in which the sender has the output of a corrupted run and every other head is frozen to
its clean one shows what the receivers would get; a clean run in which receivers get that, and nothing else is changed,
shows what follows.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jattn.interpret.capture import capture
from jattn.interpret.edit import Add, Edit, Set, Where, edit

HEADS = "layers.{}.attention.head_output"
FEED_FORWARD = "layers.{}.feed_forward.output"


class Receiver(NamedTuple):
    """Where the sender's effect goes on from: a site, and which part of it."""

    site: str
    where: Where = Where()


def path_patch(
    model: Callable[..., Any],
    clean: tuple[Any, ...],
    corrupt: tuple[Any, ...],
    senders: Bool[Array, "layers heads"],
    receivers: Iterable[Receiver] = (),
    *,
    positions: Bool[Array, "*batch length"] | None = None,
    freeze_feed_forward: bool = False,
) -> Any:
    """The clean run's output, as the senders change it through the receivers alone.

    Sweeping over senders is one program: `jax.lax.map(lambda senders: path_patch(...), one_head_each(layers, heads))`.

    Args:
      model: with the sites of `jattn.models.LanguageModel`; called with `*clean` and with `*corrupt`, which have
        activations of the same shapes.
      senders: heads that have their corrupted output, all of them at once.
      receivers: none: the output itself. Keys and values of single query heads are "key_of_head", "value_of_head".
      positions: where senders have it; None: everywhere.
      freeze_feed_forward: keep feed-forward layers to their clean outputs too; else they follow what they read.

    Raises:
      ValueError: a receiver that the model does not have, or shapes that do not fit.
    """
    layers = len(senders)
    frozen_sites = [HEADS.format(layer) for layer in range(layers)]
    others = [FEED_FORWARD.format(layer) for layer in range(layers)] if freeze_feed_forward else []
    as_clean = capture(model, *clean, sites=(*frozen_sites, *others)).sites
    as_corrupt = capture(model, *corrupt, sites=frozen_sites).sites
    edits: list[Edit] = [edit(site, Set(as_clean[site])) for site in (*frozen_sites, *others)]
    edits += [
        edit(site, Set(as_corrupt[site]), Where(positions=positions, heads=senders[layer]))
        for layer, site in enumerate(frozen_sites)
    ]
    receivers = tuple(receivers)
    sent = capture(model, *clean, sites=[receiver.site for receiver in receivers], edits=edits)
    if not receivers:
        return sent.output
    received = [edit(receiver.site, Set(sent.sites[receiver.site]), receiver.where) for receiver in receivers]
    return capture(model, *clean, edits=received).output


def one_head_each(layers: int, heads: int) -> Bool[Array, "senders layers heads"]:
    """Masks with one head each, for a sweep: layer by layer, and in a layer head by head."""
    return jnp.eye(layers * heads, dtype=bool).reshape(-1, layers, heads)


def attribute_heads(
    model: Callable[..., Any],
    clean: tuple[Any, ...],
    corrupt: tuple[Any, ...],
    metric: Callable[[Any], Float[Array, ""]],
    layers: Sequence[int] | int,
) -> Float[Array, "layers heads"]:
    """First-order estimate of what each head's corrupted output does to a metric: Σ (corrupt - clean) ∂metric/∂output.

    One clean run, one corrupted and one gradient serve all heads (attribution patching, Nanda 2023). The estimate has
    nothing frozen: it is of the head's effect along all paths.

    Args:
      metric: of the model's output.
      layers: which ones, or how many.

    Raises:
      ValueError: the model does not have such layers.
    """
    sites = [HEADS.format(layer) for layer in (range(layers) if isinstance(layers, int) else layers)]
    as_clean, as_corrupt = (capture(model, *inputs, sites=sites).sites for inputs in (clean, corrupt))

    def measured(added: dict[str, Array]) -> Float[Array, ""]:
        return metric(capture(model, *clean, edits=[edit(site, Add(each)) for site, each in added.items()]).output)

    slopes = jax.grad(measured)(jax.tree.map(jnp.zeros_like, as_clean))
    changes = jax.tree.map(lambda slope, corrupt, clean: slope * (corrupt - clean), slopes, as_corrupt, as_clean)
    return jnp.stack([changes[site].sum(axis=(0, 1, 3)) for site in sites])


def patching_effect(
    patched: Float[Array, "*any"], clean: Float[Array, "*#any"], corrupt: Float[Array, "*#any"]
) -> Float[Array, "*any"]:
    """(patched - clean) / (corrupt - clean): 0 where nothing changed, 1 where all of the corruption came through.

    Raises:
      ValueError: the corrupted metric equals the clean one, where they are known.
    """
    gap = corrupt - clean
    if not isinstance(gap, Tracer) and bool((gap == 0).any()):
        raise ValueError("corrupt must differ from clean in the metric; the two are equal")
    return (patched - clean) / gap
