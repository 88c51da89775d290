"""Tokenizers of pretrained models, from `tokenizer.json` or from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jattn.pretrained.gguf import MAGIC
from jattn.pretrained.mapped import Bytes
from jattn.pretrained.weights import open_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_JSON = 64 << 20
LONGEST_TOKEN = 1024
"""Characters; at each of them it is tried whether two tokens make this one."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of tokens in GGUF files."""
SPACE = "▁"


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` or a GGUF file, known by how the file begins.

    `encode(text).ids` adds what the file says begins or ends a text, unless `add_special_tokens=False`. It neither
    cuts nor pads, whatever the file says. Of GGUF files those with byte-level BPE ("gpt2") are read, and those with
    SentencePiece's BPE of tokens and scores ("llama").

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is neither, is damaged, or has a tokenizer of another kind.
      ModuleNotFoundError: the package tokenizers is not installed.
    """
    source = Bytes(Path(path))
    if source.content[: len(MAGIC)].tobytes() == MAGIC:
        metadata = open_weights(path).metadata
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise source.error(f"field 'tokenizer.ggml.model' must be 'gpt2' or 'llama'; got {kind!r:.50}")
        build = partial(_byte_level if kind == "gpt2" else _sentence_piece, metadata)
    elif source.content[0] == ord("{") and len(source) <= LARGEST_JSON:
        build = partial(_from_json, source.content.tobytes())
    else:
        raise source.error(f"must be a GGUF file, or a JSON object of at most {LARGEST_JSON} bytes")
    try:
        return build()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'jattn[weights]'") from error
    except BaseException as error:  # of tokenizers' own; where it panics, not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise source.error(f"no tokenizer can be made of it: {error}") from None


def _from_json(content: bytes) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE, with the merges that the file lists."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    before = {"smollm": [pre_tokenizers.Digits(individual_digits=True)], "gpt-2": []}
    split = _field(metadata, "pre", str)
    if split not in before:
        raise ValueError(f"field 'tokenizer.ggml.pre' must be one of {', '.join(before)}; got {split!r:.50}")
    vocabulary = _vocabulary(metadata)
    merges = [tuple(merge.split(" ")) for merge in _field(metadata, "merges", tuple)]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise ValueError(f"a merge must make a token out of two; got {' '.join(merge)!r:.200}")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before[split], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special_tokens(tokenizer, metadata)


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours that together are a token, those whose token scores highest merge first.

    Characters that are no token become their bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    if _field(metadata, "add_space_prefix", bool):
        raise ValueError("field 'tokenizer.ggml.add_space_prefix' must be false; got true")
    vocabulary = _vocabulary(metadata)
    scores = _field(metadata, "scores", np.ndarray).tolist()
    types = _types(metadata, vocabulary)
    if len(scores) != len(vocabulary):
        raise ValueError(f"field 'tokenizer.ggml.scores' must have {len(vocabulary)} numbers; got {len(scores)}")
    pieces = {token for token, kind in zip(vocabulary, types, strict=True) if kind == NORMAL}
    if (longest := max(map(len, pieces), default=0)) > LONGEST_TOKEN:
        raise ValueError(f"a token must have at most {LONGEST_TOKEN} characters; got {longest}")
    ranked = sorted(pieces, key=lambda token: (-scores[vocabulary[token]], vocabulary[token]))
    merges = [
        (token[:place], token[place:])
        for token in ranked
        for place in range(1, len(token))
        if token[:place] in pieces and token[place:] in pieces
    ]
    unknown = next((token for token, kind in zip(vocabulary, types, strict=True) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token=unknown))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_special_tokens(tokenizer, metadata)


def _with_special_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> Tokenizer:
    """Tokens that are found in text as they stand, and the token that begins a text, where there is one."""
    from tokenizers import AddedToken, processors

    vocabulary = _vocabulary(metadata)
    types = _types(metadata, vocabulary)
    added = {CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(vocabulary, types, strict=True):
        if kind in added:
            added[kind].append(AddedToken(token, special=kind == CONTROL, normalized=kind == USER_DEFINED))
    tokenizer.add_special_tokens(added[CONTROL])
    tokenizer.add_tokens(added[USER_DEFINED])
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        number = _field(metadata, "bos_token_id", int)
        if not 0 <= number < len(types):
            raise ValueError(f"field 'tokenizer.ggml.bos_token_id' must be below {len(types)}; got {number}")
        begin = _field(metadata, "tokens", tuple)[number]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin}:0 $A:0", pair=f"{begin}:0 $A:0 $B:1", special_tokens=[(begin, number)]
        )
    return tokenizer


def _vocabulary(metadata: Mapping[str, Any]) -> dict[str, int]:
    tokens = _field(metadata, "tokens", tuple)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError(f"field 'tokenizer.ggml.tokens' must have {len(tokens)} tokens; {len(vocabulary)} differ")
    return vocabulary


def _types(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[int]:
    types = _field(metadata, "token_type", np.ndarray).tolist()
    if len(types) != len(vocabulary):
        raise ValueError(f"field 'tokenizer.ggml.token_type' must have {len(vocabulary)} numbers; got {len(types)}")
    return types


def _field(metadata: Mapping[str, Any], name: str, kind: type) -> Any:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None or not isinstance(value, kind):
        raise ValueError(f"field 'tokenizer.ggml.{name}' must be there, a {kind.__name__}; got {value!r:.50}")
    return value
