"""What is measured on trained models: bits by place in long windows, and which blocks are read."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.landmark.config import Config
from experiments.landmark.model import LANDMARK_ID, chunked_losses, retrieving
from jattn.mechanisms import grouped_softmax_weights, insert_landmarks, is_landmark
from jattn.models.decoder import Decoder
from jattn.train import Fitted
from jattn.train.language import over_windows


def read_in_chunks(
    config: Config, top_k: int, model: Decoder, windows: Int[Array, "windows length"], way: Int[Array, ""] | int
) -> tuple[Float[Array, "windows predicted"], Bool[Array, "windows predicted"]]:
    """Nats of every byte but the first, read in chunks with so many blocks chosen in a way of `ExchangedBlocks`.

    And whether it was the likeliest byte.
    """

    def one(model: Decoder, window: Int[Array, "1 length"]) -> tuple[Array, Array]:
        nats, likeliest = chunked_losses(config.block, config.chunk, model, window)
        return nats[0], likeliest[0]

    return over_windows(one, retrieving(config, model, top_k, way), windows)


def weights_by_block(
    fitted: Fitted, config: Config, windows: Int[Array, "windows length"]
) -> Float[np.ndarray, "seeds layers blocks"]:
    """What tokens of the last finished block read of each block, from their own backwards; means over heads."""
    return np.asarray(fitted.map(partial(_weights_by_block, config), shared=(windows,)), np.float64)


def _weights_by_block(
    config: Config, model: Decoder, windows: Int[Array, "windows length"]
) -> Float[Array, "layers blocks"]:
    size = config.block + 1
    blocks = config.length // config.block

    def one(model: Decoder, window: Int[Array, "1 length"]) -> Float[Array, "layers blocks"]:
        tokens = insert_landmarks(window, config.block, LANDMARK_ID)[:, : blocks * size]
        features, found = model.embedding(tokens), []
        for layer in model.blocks:
            query, key, _ = layer.attention.project(layer.attention_norm(features))
            scores = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
            weights = grouped_softmax_weights(scores, is_landmark(tokens.shape[1], config.block))
            of_blocks = weights[..., -size:, :].reshape(*weights.shape[:-2], size, blocks, size).sum(axis=-1)
            found.append(of_blocks.mean(axis=(0, 1, 2))[::-1])
            features = layer(features, None)
        return jnp.stack(found)

    return over_windows(one, model, windows).mean(axis=0)


def share_fetched(config: Config, top_k: int) -> float:
    """Of the finished blocks at the end of a long window, how many a token and head fetch."""
    return top_k / (config.long_length // config.block)
