"""Known models, ready to run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from jattn.models.encoder import Encoder
from jattn.models.language_model import LanguageModel
from jattn.models.speech import SpeechModel
from jattn.pretrained import hugging_face
from jattn.pretrained.bert import bert_arrays, bert_config
from jattn.pretrained.files import find
from jattn.pretrained.fill import Arrays, fill
from jattn.pretrained.llama import gemma3_arrays, gemma3_config, llama_arrays, llama_config
from jattn.pretrained.tokenizer import load_tokenizer
from jattn.pretrained.weights import open_weights
from jattn.pretrained.whisper import whisper_arrays, whisper_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Family:
    """How files of one architecture become a model.

    Attributes:
      model: the class, of a config and `rngs`.
      config: of the metadata and the tensors.
      arrays: what makes each parameter out of the tensors, for a config.
    """

    model: Callable[..., Any]
    config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    arrays: Callable[[Mapping[str, Any], Any], Arrays]


FAMILIES = {
    ("GGUF", "llama"): Family(LanguageModel, llama_config, llama_arrays),
    ("GGUF", "gemma3"): Family(LanguageModel, gemma3_config, gemma3_arrays),
    ("safetensors", "llama"): Family(LanguageModel, hugging_face.llama_config, hugging_face.llama_arrays),
    ("safetensors", "gemma3_text"): Family(LanguageModel, hugging_face.gemma3_config, hugging_face.gemma3_arrays),
    ("safetensors", "bert"): Family(Encoder, bert_config, bert_arrays),
    ("CTranslate2", "WhisperSpec"): Family(SpeechModel, whisper_config, whisper_arrays),
    ("safetensors", "gpt2"): Family(LanguageModel, hugging_face.gpt2_config, hugging_face.gpt2_arrays),
}
"""By the format of a file (`Weights.format`), and the name that it or its config.json has for the architecture."""


def load(name: str, dtype: DTypeLike = jnp.float32) -> "tuple[Any, Tokenizer]":
    """A known model with its weights (`jattn.pretrained.MODELS`), and its tokenizer.

    Raises:
      FileNotFoundError: its files are not on this machine; says which command brings them.
      ValueError: a file is damaged or is no such model.
      ModuleNotFoundError: a reader that it takes is not installed.
    """
    files = find(name)
    return load_model(files.weights, files.config, dtype), load_tokenizer(files.tokenizer or files.weights)


def load_model(weights: Path | str, config: Path | str | None = None, dtype: DTypeLike = jnp.float32) -> Any:
    """The model in a file of weights, with its parameters in that dtype.

    Args:
      config: the config.json that tells of the model, where the file of weights does not itself.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or of an architecture that is not read.
    """
    opened = open_weights(weights)
    metadata = dict(opened.metadata)
    if config is not None:
        metadata |= json.loads(Path(config).read_bytes())
    kind = metadata.get("general.architecture") or metadata.get("model_type") or metadata.get("specification")
    if (family := FAMILIES.get((opened.format, str(kind)))) is None:
        known = ", ".join(name for format, name in FAMILIES if format == opened.format)
        raise ValueError(f"{opened.path}: the architecture must be among {known or 'none'}; got {kind!r:.50}")
    try:
        made = family.config(metadata, opened.tensors)
        return fill(lambda rngs: family.model(made, rngs=rngs), family.arrays(opened.tensors, made), dtype)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{opened.path}: {error}") from error
