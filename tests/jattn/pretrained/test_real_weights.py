"""The known models themselves, where they are on this machine: against the formats' own readers."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from jattn.pretrained import ModelFiles, Weights, find, load_tokenizer, open_weights

pytestmark = pytest.mark.slow

CAPITAL = "The capital of France is"


def here(name: str) -> ModelFiles:
    try:
        return find(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "tensors", "numbers"),
    [
        ("smollm2-135m", 272, 134_515_008),
        ("gemma3-270m", 236, 268_098_176),
        ("minilm-l6", 104, 22_713_728),
        ("whisper-tiny-en", 149, 57_680_649),
        ("whisper-base", 213, 99_158_025),
        ("lite-medsam", 435, 9_801_439),
    ],
)
def test_every_tensor_is_read(name: str, tensors: int, numbers: int) -> None:
    weights = open_weights(here(name).weights)
    sizes = []
    for tensor in weights.tensors.values():
        sizes.append(tensor.size)
        assert np.isfinite(tensor.astype(np.float32)).all()
    assert (len(sizes), sum(sizes)) == (tensors, numbers)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_gguf_as_its_own_reader_reads_it(name: str) -> None:
    path = here(name).weights
    weights = open_weights(path)
    for found in GGUFReader(path).tensors[:20]:
        expected = dequantize(found.data, found.tensor_type)
        np.testing.assert_array_equal(weights.tensors[found.name], expected.reshape(found.shape[::-1]))


def test_minilm_as_safetensors_reads_it() -> None:
    path = here("minilm-l6").weights
    weights = open_weights(path)
    peer = load_file(path)
    assert set(weights.tensors) == set(peer)
    for name, tensor in peer.items():
        np.testing.assert_array_equal(weights.tensors[name], tensor)


def test_lite_medsam_as_torch_reads_it() -> None:
    torch = pytest.importorskip("torch")
    path = here("lite-medsam").weights
    weights = open_weights(path)
    peer = torch.load(path, map_location="cpu", weights_only=True)
    assert list(weights.tensors) == list(peer)
    for name, tensor in peer.items():
        np.testing.assert_array_equal(weights.tensors[name], tensor.numpy())


@pytest.mark.parametrize(("name", "layers", "width"), [("whisper-tiny-en", 4, 384), ("whisper-base", 6, 512)])
def test_whisper(name: str, layers: int, width: int) -> None:
    weights: Weights = open_weights(here(name).weights)
    assert weights.metadata["specification"] == "WhisperSpec"
    assert f"encoder/layer_{layers - 1}/ffn/linear_0/weight" in weights.tensors
    assert f"encoder/layer_{layers}/ffn/linear_0/weight" not in weights.tensors
    fused = weights.tensors["encoder/layer_0/self_attention/linear_0/weight"]
    assert (fused.shape, fused.dtype) == ((3 * width, width), np.float16)
    # The encoder's positions are Whisper's sinusoids, which are known.
    positions = weights.tensors["encoder/position_encodings/encodings"].astype(np.float64)
    steps = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(1500)[:, None] * steps
    np.testing.assert_allclose(positions, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-3)


IDS = {
    "smollm2-135m": [504, 3575, 282, 4649, 314],
    "gemma3-270m": [2, 818, 5279, 529, 7001, 563],
    "minilm-l6": [101, 1996, 3007, 1997, 2605, 2003, 102],
    "whisper-tiny-en": [50257, 50362, 464, 3139, 286, 4881, 318, 50256],
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_a_text(name: str) -> None:
    path = here(name).tokenizer
    assert path is not None
    assert load_tokenizer(path).encode(CAPITAL).ids == IDS[name]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Path, Tokenizer]:
    path = here("smollm2-135m").weights
    return path, load_tokenizer(path)


@settings(max_examples=500, deadline=None)
# Its vocabulary lacks some control characters, and the bytes that begin characters beyond U+3FFFF.
@given(text=st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"]), max_size=80))
def test_text_comes_back(smollm2: tuple[Path, Tokenizer], text: str) -> None:
    _, tokenizer = smollm2
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_transformers_makes_the_same_tokenizer(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = here(name).weights
    tokenizer = load_tokenizer(path)
    peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (
        CAPITAL,
        "a  b\n\n\nc 1234 héllo 😀 <bos>",
        "<|im_start|>user\nHi<|im_end|>",
        Path(__file__).read_text(),
    ):
        assert tokenizer.encode(text).ids == peer(text).input_ids
