"""A small random Whisper, read from a file of CTranslate2's, against its definition in float64; its sites."""

from math import erf
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from decoders_in_numpy import layer_norm
from flax import nnx
from weight_files import ctranslate2, ctranslate2_variable

from jattn.interpret import Set, capture, edit
from jattn.models.generate import generate
from jattn.models.speech import SpeechModel
from jattn.pretrained.load import load_model

VOCABULARY, WIDTH, HEADS, HIDDEN, MELS, FRAMES, POSITIONS = 37, 24, 3, 40, 5, 6, 16
LAYERS = {"encoder": 1, "decoder": 2}
MEL = np.random.default_rng(2).standard_normal((2, 2 * FRAMES, MELS)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (2, 7))
STEPS = 6
Tensors = dict[str, np.ndarray]


def draw() -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/conv1/weight": (WIDTH, MELS, 3),
        "encoder/conv1/bias": (WIDTH,),
        "encoder/conv2/weight": (WIDTH, WIDTH, 3),
        "encoder/conv2/bias": (WIDTH,),
        "encoder/position_encodings/encodings": (FRAMES, WIDTH),
        "decoder/position_encodings/encodings": (POSITIONS, WIDTH),
        "decoder/embeddings/weight": (VOCABULARY, WIDTH),
    }
    norms = ["encoder/layer_norm", "decoder/layer_norm"]
    for part, layers in LAYERS.items():
        for name in (f"{part}/layer_{layer}/" for layer in range(layers)):
            maps = {
                "self_attention/linear_0": (3 * WIDTH, WIDTH),
                "self_attention/linear_1": (WIDTH, WIDTH),
                "ffn/linear_0": (HIDDEN, WIDTH),
                "ffn/linear_1": (WIDTH, HIDDEN),
            }
            norms += [f"{name}self_attention/layer_norm", f"{name}ffn/layer_norm"]
            if part == "decoder":
                norms.append(f"{name}attention/layer_norm")
                maps |= {f"attention/linear_{place}": (size * WIDTH, WIDTH) for place, size in enumerate((1, 2, 1))}
            for other, shape in maps.items():
                shapes |= {f"{name}{other}/weight": shape, f"{name}{other}/bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}/gamma": (WIDTH,), f"{name}/beta": (WIDTH,)}
    rng = np.random.default_rng(0)
    return {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


class Definition:
    """By the paper, in float64, one sound and one text at a time."""

    def __init__(self, tensors: Tensors):
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.tensors[f"{name}/weight"].T + self.tensors[f"{name}/bias"]

    def normed(self, x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, self.tensors[f"{name}/layer_norm/gamma"], self.tensors[f"{name}/layer_norm/beta"], 1e-5)

    def convolved(self, x: np.ndarray, name: str, stride: int) -> np.ndarray:
        padded = np.pad(x, ((1, 1), (0, 0)))
        kernel, bias = self.tensors[f"{name}/weight"], self.tensors[f"{name}/bias"]
        places = range(0, len(x), stride)
        return gelu(np.array([np.einsum("oit,ti->o", kernel, padded[at : at + 3]) for at in places]) + bias)

    def feed_forward(self, x: np.ndarray, name: str) -> np.ndarray:
        hidden = gelu(self.linear(self.normed(x, f"{name}ffn"), f"{name}ffn/linear_0"))
        return x + self.linear(hidden, f"{name}ffn/linear_1")

    def self_attention(self, x: np.ndarray, name: str, causal: bool) -> np.ndarray:
        parts = np.split(self.linear(self.normed(x, f"{name}self_attention"), f"{name}self_attention/linear_0"), 3, 1)
        return x + self.linear(attended(*parts, causal), f"{name}self_attention/linear_1")

    def heard(self, mel: np.ndarray) -> np.ndarray:
        x = self.convolved(self.convolved(mel, "encoder/conv1", 1), "encoder/conv2", 2)
        x = x + self.tensors["encoder/position_encodings/encodings"]
        for name in (f"encoder/layer_{layer}/" for layer in range(LAYERS["encoder"])):
            x = self.feed_forward(self.self_attention(x, name, False), name)
        return self.normed(x, "encoder")

    def logits(self, mel: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        heard, embedding = self.heard(mel), self.tensors["decoder/embeddings/weight"]
        x = embedding[tokens] + self.tensors["decoder/position_encodings/encodings"][: len(tokens)]
        for name in (f"decoder/layer_{layer}/" for layer in range(LAYERS["decoder"])):
            x = self.self_attention(x, name, True)
            query = self.linear(self.normed(x, f"{name}attention"), f"{name}attention/linear_0")
            key, value = np.split(self.linear(heard, f"{name}attention/linear_1"), 2, axis=1)
            x = x + self.linear(attended(query, key, value, False), f"{name}attention/linear_2")
            x = self.feed_forward(x, name)
        return self.normed(x, "decoder") @ embedding.T


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def attended(query: np.ndarray, key: np.ndarray, value: np.ndarray, causal: bool) -> np.ndarray:
    read = []
    for q, k, v in zip(*(np.split(part, HEADS, axis=1) for part in (query, key, value)), strict=True):
        weights = np.exp(q @ k.T * (WIDTH // HEADS) ** -0.5)
        weights = np.tril(weights) if causal else weights
        read.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return np.concatenate(read, axis=1)


def write(path: Path, tensors: Tensors, **heads: int) -> Path:
    variables = [ctranslate2_variable(name, tensor.shape, 0, tensor.tobytes()) for name, tensor in tensors.items()]
    for part in LAYERS:
        number = np.array(heads.get(part, HEADS), np.int16)
        variables.append(ctranslate2_variable(f"{part}/num_heads", (), 2, number.tobytes()))
    path.write_bytes(ctranslate2(variables, [("decoder/projection/weight", "decoder/embeddings/weight")]))
    return path


@pytest.fixture(scope="module")
def model_and_definition(tmp_path_factory) -> tuple[SpeechModel, Definition]:
    tensors = draw()
    return load_model(write(tmp_path_factory.mktemp("whisper") / "model.bin", tensors)), Definition(tensors)


def test_logits_are_those_of_the_definition(model_and_definition) -> None:
    model, definition = model_and_definition
    found = nnx.jit(lambda model, mel, tokens: model(mel, tokens))(model, jnp.asarray(MEL), jnp.asarray(TOKENS))
    for mel, tokens, logits in zip(MEL, TOKENS, found, strict=True):
        expected = definition.logits(mel, tokens)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_text_is_written_with_the_likeliest_tokens_of_the_definition(model_and_definition) -> None:
    """Prompts of two lengths, keys and values cached."""
    model, definition = model_and_definition
    lengths = np.array([2, 3])
    listening = nnx.jit(lambda model, mel: model.listen(mel, 3 + STEPS))(model, jnp.asarray(MEL))
    prompts = jnp.asarray(TOKENS[:, :3])
    found = np.asarray(generate(model.decoder, prompts, STEPS, state=listening, lengths=jnp.asarray(lengths)).tokens)
    for mel, tokens, length, written in zip(MEL, TOKENS, lengths, found, strict=True):
        text = list(tokens[:length])
        for token in written:
            assert token == definition.logits(mel, np.array(text))[-1].argmax()
            text.append(token)


def test_sites_show_what_is_listened_to_and_change_it(model_and_definition) -> None:
    model, definition = model_and_definition
    sites = (
        "encoder.norm",
        "encoder.layers.0.attention.weights",
        "decoder.layers.*.cross_attention.weights",
        "decoder.layers.1.cross_attention.head_output",
        "decoder.layers.*.residual",
        "decoder.residual",
    )

    @nnx.jit
    def look(model, mel, tokens, heard):
        seen = capture(model, mel, tokens, sites=sites).sites
        return seen, capture(model, mel, tokens, edits=[edit("encoder.norm", Set(heard))]).output

    one, other = (np.stack([definition.heard(mel)] * 2).astype(np.float32) for mel in MEL)
    seen, logits = look(model, jnp.asarray(MEL), jnp.asarray(np.stack([TOKENS[0]] * 2)), jnp.asarray(other))
    np.testing.assert_allclose(seen["encoder.norm"], np.stack([one[0], other[0]]), atol=1e-5)
    for layer in range(LAYERS["decoder"]):
        weights = np.asarray(seen[f"decoder.layers.{layer}.cross_attention.weights"])
        assert weights.shape == (2, HEADS, 7, FRAMES)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert seen["decoder.layers.1.cross_attention.head_output"].shape == (2, 7, HEADS, WIDTH // HEADS)
    # Both texts now follow what the second sound says.
    expected = definition.logits(MEL[1], TOKENS[0])
    for found in logits:
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_does_not_fit_is_refused(model_and_definition, tmp_path: Path) -> None:
    model, _ = model_and_definition
    with pytest.raises(ValueError, match=r"must have 12 frames of 5 bands; got shape \(2, 11, 5\)"):
        model.listen(jnp.asarray(MEL[:, :-1]), 4)
    with pytest.raises(ValueError, match="state must be given to a decoder that listens"):
        generate(model.decoder, jnp.asarray(TOKENS), 2)
    with pytest.raises(ValueError, match="as many heads; they have 3 and 4"):
        load_model(write(tmp_path / "model.bin", draw(), decoder=4))
    flat = {name: tensor.ravel() if name == "encoder/conv1/weight" else tensor for name, tensor in draw().items()}
    with pytest.raises(ValueError, match=r"encoder/conv1/weight must have 3 axes; got shape \(\d+,\)"):
        load_model(write(tmp_path / "model.bin", flat))
