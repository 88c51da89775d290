"""Models against those of the library transformers on the same weights; its weights are random where small."""

import importlib.util
import wave
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.bench.peers import decoder_of_transformers
from jattn.data.log_mel import log_mel
from jattn.models.generate import generate
from jattn.pretrained import find
from jattn.pretrained.load import load_model
from jattn.pretrained.tokenizer import load_tokenizer
from jattn.pretrained.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch = pytest.importorskip("torch")  # both come with jattn[bench]
transformers = pytest.importorskip("transformers")

BAR = 1e-4
"""Of the largest difference of logits, relative to the largest logit, in float32."""
GATED = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SMALL = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GATED),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        GATED
        | {
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 97,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 6,
            "n_positions": 40,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
}


@jax.jit
def forward(parts: Any, *arguments: Any) -> Any:
    return nnx.merge(*parts)(*arguments)


def error(found: Any, expected: Any) -> float:
    expected = expected.detach().numpy()
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(forward(nnx.split(model), jnp.asarray(tokens)))


@pytest.mark.parametrize("name", SMALL)
def test_small_random_decoders(name: str, tmp_path: Path) -> None:
    kind, config, sizes = SMALL[name]
    torch.manual_seed(0)
    peer = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    for parameter in peer.parameters():
        parameter.data.normal_(0, 0.2)
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path / "model.safetensors", tmp_path / "config.json")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 12))
    assert error(logits(model, tokens), peer(torch.tensor(tokens)).logits) < BAR
    expected = peer.generate(torch.tensor(tokens), max_new_tokens=8, do_sample=False)[:, 12:]
    np.testing.assert_array_equal(generate(model, jnp.asarray(tokens), 8).tokens, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_decoders(name: str) -> None:
    """Logits of a text longer than Gemma's window; greedy continuations; bfloat16 near float32."""
    try:
        files = find(name)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    path = files.weights
    tokenizer = load_tokenizer(path)
    text = tokenizer.encode(Path(__file__).read_text()).ids
    model = load_model(path)
    peer = decoder_of_transformers(path, model.config)
    assert len(text) > 600
    tokens = np.array([text[:600]])
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits
        continued = peer.generate(torch.tensor(tokens[:, :40]), max_new_tokens=20, do_sample=False)[:, 40:]
    found = logits(model, tokens)
    assert error(found, expected) < BAR
    np.testing.assert_array_equal(generate(model, jnp.asarray(tokens[:, :40]), 20).tokens, continued)
    half = logits(load_model(path, dtype=jnp.bfloat16), tokens).astype(np.float32)
    assert np.sqrt(((half - found) ** 2).mean() / (found**2).mean()) < 0.1
    assert (half.argmax(-1) == found.argmax(-1)).mean() > 0.8


@pytest.mark.slow
def test_real_sentence_encoder() -> None:
    """Sentences of different lengths, padded together."""
    try:
        files = find("minilm-l6")
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert files.tokenizer is not None
    tokenizer = load_tokenizer(files.tokenizer)
    tokenizer.enable_padding()
    sentences = [
        "A man is playing a guitar.",
        "Somebody plays an instrument on the stage in front of many people.",
        "Interest rates rose again.",
    ]
    encoded = tokenizer.encode_batch(sentences)
    tokens, inside = (np.array([getattr(each, name) for each in encoded]) for name in ("ids", "attention_mask"))
    peer = transformers.BertModel.from_pretrained(files.weights.parent).eval()
    expected = peer(torch.tensor(tokens), attention_mask=torch.tensor(inside)).last_hidden_state
    model = load_model(files.weights, files.config)
    lengths = jnp.asarray(inside.sum(axis=1))
    found = forward(nnx.split(model), jnp.asarray(tokens), lengths)
    assert error(found[inside == 1], expected[inside == 1]) < BAR
    mean = (expected * torch.tensor(inside)[..., None]).sum(1) / torch.tensor(inside).sum(1, keepdim=True)
    embedded = np.asarray(model.embed_sentences(jnp.asarray(tokens), lengths))
    assert error(embedded, torch.nn.functional.normalize(mean, dim=1)) < BAR
    alike = embedded @ embedded.T
    assert alike[0, 1] > 0.3 > alike[0, 2]


def test_spectrograms() -> None:
    """Of noise that grows, for three seconds."""
    samples = (np.random.default_rng(0).standard_normal(48_000) * np.linspace(0, 0.3, 48_000)).astype(np.float32)
    expected = transformers.WhisperFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="np").input_features
    np.testing.assert_allclose(log_mel(jnp.asarray(samples)[None])[0], expected[0].T, atol=1e-4)


def whisper_of_transformers(path: Path) -> Any:
    """With the weights of a file of CTranslate2's, which joins projections of the same features."""
    t = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in open_weights(path).tensors.items()}
    config = transformers.WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
    )  # fmt: skip
    peer = transformers.WhisperForConditionalGeneration(config)
    state = {
        "model.encoder.embed_positions.weight": t["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": t["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": t["decoder/embeddings/weight"],
        "proj_out.weight": t["decoder/embeddings/weight"],
    }
    for number in (1, 2):
        state |= {
            f"model.encoder.conv{number}.{kind}": t[f"encoder/conv{number}/{kind}"] for kind in ("weight", "bias")
        }
    for part in ("encoder", "decoder"):
        norms = {f"model.{part}.layer_norm": f"{part}/layer_norm"}
        for layer in range(4):
            ours, theirs = f"{part}/layer_{layer}/", f"model.{part}.layers.{layer}."
            norms |= {f"{theirs}self_attn_layer_norm": f"{ours}self_attention/layer_norm"}
            norms |= {f"{theirs}final_layer_norm": f"{ours}ffn/layer_norm"}
            maps = {"fc1": ("ffn/linear_0", 1, 0), "fc2": ("ffn/linear_1", 1, 0)}
            maps |= {f"self_attn.{name}_proj": ("self_attention/linear_0", 3, at) for at, name in enumerate("qkv")}
            maps["self_attn.out_proj"] = ("self_attention/linear_1", 1, 0)
            if part == "decoder":
                norms |= {f"{theirs}encoder_attn_layer_norm": f"{ours}attention/layer_norm"}
                maps |= {f"encoder_attn.{name}_proj": ("attention/linear_1", 2, at) for at, name in enumerate("kv")}
                maps["encoder_attn.q_proj"] = ("attention/linear_0", 1, 0)
                maps["encoder_attn.out_proj"] = ("attention/linear_2", 1, 0)
            for name, (other, count, at) in maps.items():
                for kind in ("weight", "bias"):
                    state[f"{theirs}{name}.{kind}"] = t[f"{ours}{other}/{kind}"].chunk(count)[at]
        for name, other in norms.items():
            state |= {f"{name}.weight": t[f"{other}/gamma"], f"{name}.bias": t[f"{other}/beta"]}
    missing, left = peer.load_state_dict(
        {name: value for name, value in state.items() if name in peer.state_dict()}, strict=False
    )
    assert not missing
    assert not left
    return peer.eval()


@pytest.mark.slow
def test_real_whisper() -> None:
    """Logits behind a tone in noise, and words that are known of speech, where there is some."""
    try:
        files = find("whisper-tiny-en")
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert files.tokenizer is not None
    model = load_model(files.weights, files.config)
    rng = np.random.default_rng(0)
    sound = np.sin(np.arange(80_000) ** 1.3 / 50) * 0.3 + 0.05 * rng.standard_normal(80_000)
    mel = log_mel(jnp.asarray(sound, jnp.float32)[None])
    tokens = np.array([[50257, 50362, *rng.integers(0, 50000, 12)]])
    peer = whisper_of_transformers(files.weights)
    with torch.no_grad():
        heard = torch.from_numpy(np.array(mel).transpose(0, 2, 1))
        expected = peer(input_features=heard, decoder_input_ids=torch.tensor(tokens)).logits
    assert error(forward(nnx.split(model), mel, jnp.asarray(tokens)), expected) < BAR
    package = importlib.util.find_spec("moonshine_voice")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("the speech comes with the package moonshine-voice")
    with wave.open(str(Path(package.submodule_search_locations[0]) / "assets" / "beckett.wav")) as recording:
        assert recording.getframerate() == 16_000
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2") / np.float32(32768)
    state = model.listen(log_mel(jnp.asarray(samples)[None]), 60)
    written = generate(model.decoder, jnp.asarray([[50257, 50362]]), 50, state=state, stop=(50256,))
    text = load_tokenizer(files.tokenizer).decode(np.asarray(written.tokens[0]).tolist())
    words = "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()
    said = "ever tried ever failed no matter try again fail again fail better"
    assert " ".join(words) == said
