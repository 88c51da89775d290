"""Path patching against its definition written out, head by head, and against direct effects of a linear readout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.interpret import (
    Add,
    Receiver,
    Set,
    Where,
    attribute_heads,
    capture,
    edit,
    one_head_each,
    patching_effect,
    path_patch,
)
from jattn.models.language_model import LanguageModel, LanguageModelConfig

LAYERS, HEADS, LENGTH = 3, 4, 7
MODEL = LanguageModelConfig(30, 16, LAYERS, HEADS, 24, kv_heads=2)
CLEAN, CORRUPT = jnp.asarray(np.random.default_rng(1).integers(0, 30, (2, 2, LENGTH)))
OUTPUTS = tuple(f"layers.{layer}.attention.head_output" for layer in range(LAYERS))
LAST = jnp.arange(LENGTH) == LENGTH - 1


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(MODEL, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def heads(model) -> tuple[dict, dict]:
    read = jax.jit(lambda tokens: capture(model, tokens, sites=OUTPUTS).sites)
    return read(CLEAN), read(CORRUPT)


def sweep(model, receivers=(), **options):
    def one(senders):
        return path_patch(model, (CLEAN,), (CORRUPT,), senders, receivers, **options)

    return jax.jit(lambda masks: jax.lax.map(one, masks))(one_head_each(LAYERS, HEADS))


def test_patching_to_the_output_is_the_loop_written_out(model, heads) -> None:
    """Every head's output written as an array of the caller's, one run a head; feed-forward layers follow."""
    clean, corrupt = heads

    @jax.jit
    def run(outputs):
        return capture(model, CLEAN, edits=[edit(site, Set(outputs[site])) for site in OUTPUTS]).output

    have = sweep(model)
    for sender in range(LAYERS * HEADS):
        layer, head = divmod(sender, HEADS)
        mixed = dict(clean)
        mixed[OUTPUTS[layer]] = clean[OUTPUTS[layer]].at[:, :, head].set(corrupt[OUTPUTS[layer]][:, :, head])
        np.testing.assert_allclose(have[sender], run(mixed), atol=1e-5)


def test_nobody_patched_is_the_clean_run(model) -> None:
    nobody = jnp.zeros((LAYERS, HEADS), bool)
    for receivers in ((), (Receiver("layers.2.attention.query"),)):
        have = path_patch(model, (CLEAN,), (CORRUPT,), nobody, receivers)
        np.testing.assert_allclose(have, model(CLEAN), atol=1e-5)


def test_everything_patched_is_the_corrupted_run(model, heads) -> None:
    """All heads and the embedding it starts from: the residual stream is the corrupted one."""
    _, corrupt = heads
    start = capture(model, CORRUPT, sites=["embedding"]).sites["embedding"]
    edits = [edit("embedding", Set(start)), *(edit(site, Set(corrupt[site])) for site in OUTPUTS)]
    np.testing.assert_allclose(capture(model, CLEAN, edits=edits).output, model(CORRUPT), atol=1e-5)


def test_a_sender_behind_its_receiver_does_nothing(model) -> None:
    head = jnp.arange(HEADS) == 1
    receiver = Receiver("layers.1.attention.query", Where(heads=head))
    moved = np.abs(sweep(model, [receiver]) - model(CLEAN)).max(axis=(1, 2, 3)).reshape(LAYERS, HEADS)
    assert (moved[0] > 1e-4).all()
    assert (moved[1:] < 1e-5).all()


def test_direct_effects_add_up_where_all_else_is_linear() -> None:
    """No final norm to speak of: with feed-forward layers frozen, and logits read before the norm, effects add up."""
    model = LanguageModel(MODEL, rngs=nnx.Rngs(5))

    def last_residual(tokens):
        return capture(model, tokens, sites=["residual"]).sites["residual"]

    clean = last_residual(CLEAN)
    masks = jnp.concatenate([one_head_each(LAYERS, HEADS), jnp.ones((1, LAYERS, HEADS), bool)])

    def one(senders):
        return path_patch(last_residual, (CLEAN,), (CORRUPT,), senders, freeze_feed_forward=True) - clean

    *each, together = jax.jit(partial(jax.lax.map, one))(masks)
    np.testing.assert_allclose(sum(each), together, atol=1e-4)


def test_the_last_token_alone_gives_what_the_whole_text_gives(model) -> None:
    """Senders patched at the last token, output read there: earlier tokens are as in the clean run, and are cached."""

    def last(token, state):
        return model.logits(model.extend(token, state)[0])

    def inputs(tokens):
        _, state = model.extend(tokens[:, :-1], model.empty_state(2, LENGTH))
        return tokens[:, -1:], state

    def one(senders):
        return path_patch(last, inputs(CLEAN), inputs(CORRUPT), senders)

    short = jax.jit(partial(jax.lax.map, one))(one_head_each(LAYERS, HEADS))
    np.testing.assert_allclose(short[:, :, 0], sweep(model, positions=LAST)[:, :, -1], atol=1e-5)


def test_attribution_is_the_slope_of_patching(model, heads) -> None:
    """Against central differences along the change of a head's output, nothing frozen."""
    clean, corrupt = heads
    reads = jax.random.normal(jax.random.key(0), (2, LENGTH, 30))

    def metric(output):
        return (output * reads).sum()

    @jax.jit
    def moved(step, layer, head):
        chosen = (jnp.arange(LAYERS) == layer)[:, None] & (jnp.arange(HEADS) == head)
        edits = [
            edit(site, Add(step * (corrupt[site] - clean[site])), Where(heads=chosen[place]))
            for place, site in enumerate(OUTPUTS)
        ]
        return metric(capture(model, CLEAN, edits=edits).output)

    have = jax.jit(lambda: attribute_heads(model, (CLEAN,), (CORRUPT,), metric, LAYERS))()
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        slope = (moved(1e-2, layer, head) - moved(-1e-2, layer, head)) / 2e-2
        np.testing.assert_allclose(have[layer, head], slope, rtol=2e-2, atol=1e-2)


def test_effects_are_shares_of_the_flip() -> None:
    have = patching_effect(jnp.array([3.0, 2.0]), jnp.array([3.0, 3.0]), jnp.array([-1.0, -1.0]))
    np.testing.assert_allclose(have, [0, 0.25])
    with pytest.raises(ValueError, match="corrupt must differ from clean"):
        patching_effect(jnp.ones(2), jnp.ones(2), jnp.ones(2))
