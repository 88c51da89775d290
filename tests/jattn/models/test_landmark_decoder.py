"""A decoder of landmark attention, its text in chunks against its text at once."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.mechanisms import insert_landmarks
from jattn.models.decoder import Decoder, DecoderConfig
from jattn.models.landmark_decoder import landmark_layers, read_in_chunks

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CONFIG = DecoderConfig(vocabulary=12, width=16, layers=2, heads=2, hidden=24, attention=landmark_layers(4, 4))


def test_chunks_are_the_whole_text_if_all_is_retrieved_and_else_they_are_not() -> None:
    """Chunks of 6 tokens, blocks of 5: before the last chunk 3 blocks are finished, so that 4 are all and 1 is not."""

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(tokens: Any) -> Any:
        model = Decoder(CONFIG, rngs=nnx.Rngs(0))
        few = Decoder(dataclasses.replace(CONFIG, attention=landmark_layers(4, 1, "head")), rngs=nnx.Rngs(0))
        return model(tokens), read_in_chunks(model, tokens, 6), read_in_chunks(few, tokens, 6)

    text = jax.random.randint(jax.random.key(1), (2, 20), 0, 11)
    tokens = insert_landmarks(text, 4, 11)[:, :24]
    at_once, in_chunks, in_few = run(tokens)
    np.testing.assert_allclose(in_chunks, at_once, atol=2e-5)
    # Before the third chunk 2 blocks are finished, so that one that is not read is missing from there on.
    np.testing.assert_allclose(in_few[:, :12], at_once[:, :12], atol=2e-5)
    assert np.abs(in_few - at_once)[:, 12:].max() > 1e-3


def test_wrong_arguments_are_named() -> None:
    tokens = jnp.zeros((1, 12), int)
    with pytest.raises(ValueError, match="chunk must divide the 12 tokens; got 5"):
        nnx.eval_shape(lambda: read_in_chunks(Decoder(CONFIG, rngs=nnx.Rngs(0)), tokens, 5))
    plain = DecoderConfig(vocabulary=12, width=16, layers=1, heads=2, hidden=24)
    with pytest.raises(TypeError, match="must have landmark attention in every layer; got <class"):
        nnx.eval_shape(lambda: read_in_chunks(Decoder(plain, rngs=nnx.Rngs(0)), tokens, 4))
