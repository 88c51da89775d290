"""TransNormer: decoding is the forward pass, the future is not seen, memory of decoding does not grow, it learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn.mechanisms import decay_of_paper
from jattn.models.trans_normer import TransNormer, TransNormerConfig

SMALL = TransNormerConfig(vocabulary=17, width=32, layers=3, heads=4, hidden=48)


@nnx.jit
def run(model: TransNormer, *arguments, **options):
    """Compiled: an operation at a time takes far longer to start."""
    return model(*arguments, **options)


def tokens(length: int = 24) -> jax.Array:
    return jax.random.randint(jax.random.key(3), (2, length), 0, SMALL.vocabulary)


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, decay=decay_of_paper), replace(SMALL, decay=None, gate=False, positions=False)]
)
def test_prompt_then_tokens_is_one_pass(config: TransNormerConfig) -> None:
    model = TransNormer(config, rngs=nnx.Rngs(0))
    whole, _ = run(model, tokens())
    prompt, state = run(model, tokens()[:, :11])
    more, state = run(model, tokens()[:, 11:15], state)
    rest = []
    for place in range(15, 24):
        logits, state = run(model, tokens()[:, place : place + 1], state)
        rest.append(logits)
    np.testing.assert_allclose(jnp.concatenate([prompt, more, *rest], axis=1), whole, atol=2e-4)
    assert int(state.position) == 24


def test_the_future_is_not_seen() -> None:
    model = TransNormer(SMALL, rngs=nnx.Rngs(0))
    changed = tokens().at[:, 12:].set(0)
    np.testing.assert_allclose(run(model, changed)[0][:, :12], run(model, tokens())[0][:, :12], atol=1e-6)


def test_padding_before_the_text_counts_for_nothing() -> None:
    model = TransNormer(SMALL, rngs=nnx.Rngs(0))
    padded = jnp.concatenate([jnp.full((2, 5), 3), tokens()], axis=1)
    logits, _ = run(model, padded, padding=jnp.broadcast_to(jnp.arange(29) < 5, (2, 29)))
    np.testing.assert_allclose(logits[:, 5:], run(model, tokens())[0], atol=2e-4)


def test_memory_of_decoding_does_not_grow() -> None:
    """From the compiled program of a step after 1,024 and after 16,384 tokens: it is the same program."""
    model = TransNormer(SMALL, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)

    def step(parameters, token, state):
        return nnx.merge(graph, parameters)(token, state)

    found = []
    for length in (1024, 16384):
        state = jax.eval_shape(lambda p, t: nnx.merge(graph, p)(t)[1], parameters, jnp.zeros((1, length), int))
        compiled = jax.jit(step).lower(parameters, jnp.zeros((1, 1), int), state).compile()
        used = compiled.memory_analysis()
        found.append(
            (jax.tree.map(lambda leaf: leaf.shape, state), used.temp_size_in_bytes + used.output_size_in_bytes)
        )
    assert found[0] == found[1]


def test_learns_a_period() -> None:
    """The next token of a repeated random pattern, which needs what was read a period ago."""
    model = TransNormer(SMALL, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    pattern = jax.random.randint(jax.random.key(4), (8, 12), 0, SMALL.vocabulary)
    text = jnp.tile(pattern, (1, 3))

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits, _ = model(text[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])[:, 12:].mean()

        value, slope = nnx.value_and_grad(loss)(model)
        optimizer.update(model, slope)
        return value

    losses = [float(step(model, optimizer)) for _ in range(150)]
    assert losses[-1] < 0.5 < losses[0]
