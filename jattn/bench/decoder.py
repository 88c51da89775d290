"""SmolLM2 from its file to first logits, and the speed of prompts and of decoding, beside transformers, on one core."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.bench.bound import Bound, logged
from jattn.bench.cpu import Timed, cpu_seconds, pin_to_one_core
from jattn.bench.interleave import interleave
from jattn.bench.peers import decoder_of_transformers
from jattn.models.generate import generate
from jattn.models.language_model import LanguageModel
from jattn.pretrained.files import find
from jattn.pretrained.load import load_model

MODEL = "smollm2-135m"
PROMPT, STEPS = 256, 32
ROUNDS = 5
TO_FIRST_LOGITS = f"""
import json, time
import jax, jax.numpy as jnp
from flax import nnx
from jattn.pretrained.load import load

imported = time.process_time()  # of this process since it began
model, tokenizer = load({MODEL!r})
jax.block_until_ready(nnx.state(model))
loaded = time.process_time()
tokens = jnp.asarray([tokenizer.encode("The capital of France is").ids])
jax.block_until_ready(nnx.jit(lambda model, tokens: model(tokens))(model, tokens))
ready = time.process_time()
print(json.dumps({{"importing": imported, "loading": loaded - imported, "first logits": ready - loaded}}))
"""
"""A program of its own, which imports what it takes and nothing of benchmarks."""


def measure_decoder() -> list[dict[str, Any]]:
    """CPU seconds to first logits; tokens a CPU second as ratios to transformers' on the same weights, in float32.

    Raises:
      FileNotFoundError: the weights are not on this machine; says which command brings them.
      ModuleNotFoundError: torch or transformers is not installed.
    """
    pin_to_one_core()
    return logged(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    told = subprocess.run([sys.executable, "-c", TO_FIRST_LOGITS], capture_output=True, text=True, check=True).stdout
    found = json.loads(told.splitlines()[-1])
    detail = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.items())
    yield Bound(15.0).row(f"{MODEL} to first logits, CPU seconds", "1 s", np.array([sum(found.values())]), detail)
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    path = find(MODEL).weights
    model = load_model(path)
    peer = decoder_of_transformers(path, model.config)
    tokens = np.random.default_rng(0).integers(0, model.config.vocabulary, (1, PROMPT))
    for what, count, ours, theirs in (
        (f"prompt of {PROMPT} tokens", PROMPT, _prompt(model, tokens), _prompt_of_torch(peer, tokens)),
        (f"decoding behind {PROMPT} tokens", STEPS, _decode(model, tokens), _decode_of_torch(peer, tokens)),
    ):
        seconds = interleave({"jattn": ours, "transformers": theirs}, ROUNDS)
        speeds = ", ".join(f"{name} {count / np.median(each):.3g} tokens/s" for name, each in seconds.items())
        yield Bound(1.0, at_least=True).row(what, "transformers", seconds["transformers"] / seconds["jattn"], speeds)


def _prompt(model: LanguageModel, tokens: np.ndarray) -> Timed:
    """Keys and values cached of the whole prompt, and logits made of the last token alone, as by transformers."""
    graph, parameters = nnx.split(model)

    @jax.jit
    def read(parameters: nnx.State, tokens: jax.Array) -> Any:
        model = nnx.merge(graph, parameters)
        features, state = model.extend(tokens, model.empty_state(len(tokens), tokens.shape[1]))
        return model.logits(features[:, -1:]).argmax(), state

    return partial(cpu_seconds, partial(read, parameters, jnp.asarray(tokens)))


def _decode(model: LanguageModel, tokens: np.ndarray) -> Timed:
    """What more steps take: with 1 + STEPS against 1."""
    short, long = (
        partial(cpu_seconds, partial(generate, model, jnp.asarray(tokens), steps)) for steps in (1, 1 + STEPS)
    )
    return lambda: long() - short()


def _prompt_of_torch(peer: Any, tokens: np.ndarray) -> Timed:
    import torch  # pyright: ignore[reportMissingImports]

    def measure() -> float:
        with torch.inference_mode():
            return cpu_seconds(lambda: peer(torch.from_numpy(tokens), logits_to_keep=1, use_cache=True).logits.argmax())

    return measure


def _decode_of_torch(peer: Any, tokens: np.ndarray) -> Timed:
    """Step by step without what their `generate` does besides."""
    import torch  # pyright: ignore[reportMissingImports]

    def measure() -> float:
        with torch.inference_mode():
            read = peer(torch.from_numpy(tokens), logits_to_keep=1, use_cache=True)

            def decode() -> Any:
                last = read
                for _ in range(STEPS):
                    last = peer(last.logits[:, -1:].argmax(-1), past_key_values=last.past_key_values, use_cache=True)
                return last.logits

            return cpu_seconds(decode)

    return measure
