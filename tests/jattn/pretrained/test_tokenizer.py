"""Tokenizers out of small files, against tokenizers' own and against SentencePiece's rule written plainly."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from weight_files import gguf

from jattn.pretrained import load_tokenizer

TEXT = ["the cat sat on the mat, and the hat was on the cat", "theatre 1234 thermal hätte   spaces\n\nlines"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FAST = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def write(path: Path, **fields: object) -> Path:
    """A GGUF file with those fields of a tokenizer."""
    writer = GGUFWriter(path, "llama")
    for name, value in fields.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """Byte-level BPE as SmolLM2's, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=298,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level_fields(trained: Tokenizer) -> dict[str, object]:
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3 if token == "<|end|>" else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in model["merges"]],
    }


def test_byte_level_bpe(tmp_path: Path, trained: Tokenizer) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "file", **byte_level_fields(trained)))

    @FAST
    @given(st.one_of(st.text(max_size=60), st.text("the cat12 \n<|end|>ä", max_size=60)))
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert ids == trained.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()
    assert len(tokenizer.encode("the cat").ids) == 2
    assert tokenizer.encode("12<|end|>").tokens == ["1", "2", "<|end|>"]


def test_what_begins_a_text(tmp_path: Path, trained: Tokenizer) -> None:
    fields = byte_level_fields(trained) | {"add_bos_token": True, "bos_token_id": 0, "pre": "gpt-2"}
    tokenizer = load_tokenizer(write(tmp_path / "file", **fields))
    assert tokenizer.encode("12").ids == [0, *tokenizer.encode("12", add_special_tokens=False).ids]
    assert tokenizer.encode("12").tokens[0] == "<|end|>"


PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "aa", "cab", "▁▁", "é", "éa"]
SCORES = [-20.0, -21.0, -22.0, -23.0, -3.0, -1.0, -2.0, -5.0, -4.0, -6.0, -7.0, -8.0, -24.0, -9.0]


def sentence_piece_fields() -> dict[str, object]:
    return {
        "model": "llama",
        "tokens": ["<unk>", "<bos>", "\n\n", *BYTES, *PIECES],
        "scores": [0.0] * 259 + SCORES,
        "token_type": [2, 3, 4] + [6] * 256 + [1] * len(PIECES),
        "add_bos_token": True,
        "bos_token_id": 1,
        "add_space_prefix": False,
    }


def by_the_rule(text: str) -> list[str]:
    """Kudo and Richardson 2018 (arXiv 1808.06226), BPE: of all neighbours that are a piece together, the first of those
    with the highest score are joined, until there are none; what is no piece then is its bytes in UTF-8."""
    scores = dict(zip(PIECES, SCORES, strict=True))
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[a + b], place) for place, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not pairs:
            break
        _, place = min(pairs)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return [
        piece
        for symbol in symbols
        for piece in ([symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()])
    ]


def test_sentence_piece(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "file", **sentence_piece_fields()))

    @FAST
    @given(st.one_of(st.text("abc é", max_size=24), st.text("ab zß\n😀", max_size=12)))
    def check(text: str) -> None:
        tokens = tokenizer.encode(text, add_special_tokens=False).tokens
        parts = text.split("\n\n")
        expected = [token for part in parts for token in ("\n\n", *by_the_rule(part))][1:]
        assert tokens == expected
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text

    check()
    assert tokenizer.encode("ab").tokens == ["<bos>", "ab"]
    assert tokenizer.encode("a<bos>b").ids.count(1) == 2


def test_tokenizer_json(tmp_path: Path, trained: Tokenizer) -> None:
    own = Tokenizer.from_str(trained.to_str())
    own.add_special_tokens([AddedToken("<s>", special=True)])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 298)])
    path = tmp_path / "file"
    own.save(str(path))
    uncut = Tokenizer.from_file(str(path))
    own.enable_padding(length=8)
    own.enable_truncation(4)
    own.save(str(path))
    tokenizer = load_tokenizer(path)
    for text in (*TEXT, "", "the<s>cat"):
        assert tokenizer.encode(text).ids == uncut.encode(text).ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'tokenizer.ggml.model' must be 'gpt2' or 'llama'; got 'bert'"),
        ({"pre": "llama-bpe"}, "'tokenizer.ggml.pre' must be one of smollm, gpt-2; got 'llama-bpe'"),
        ({"pre": 3}, "'tokenizer.ggml.pre' must be there, a str; got 3"),
        ({"tokens": ["a", "a"]}, "'tokenizer.ggml.tokens' must have 2 tokens; 1 differ"),
        ({"tokens": [1, 2]}, "'tokenizer.ggml.tokens' must be there, a tuple"),
        ({"tokens": ["a", "b"], "merges": ["a b"]}, "a merge must make a token out of two; got 'a b'"),
        ({"merges": ["a b c"]}, "a merge must make a token out of two; got 'a b c'"),
        ({"merges": ["ab"]}, "a merge must make a token out of two; got 'ab'"),
        ({"merges": [1]}, "'tokenizer.ggml.merges' must be there"),
        ({"token_type": [1]}, "'tokenizer.ggml.token_type' must have 298 numbers; got 1"),
        ({"add_bos_token": True}, "'tokenizer.ggml.bos_token_id' must be there, a int; got None"),
        ({"add_bos_token": True, "bos_token_id": 999}, "'tokenizer.ggml.bos_token_id' must be below 298; got 999"),
    ],
    ids=str,
)
def test_byte_level_fields_are_checked(
    tmp_path: Path, trained: Tokenizer, changes: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "file", **byte_level_fields(trained) | changes)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0]}, "'tokenizer.ggml.scores' must have 273 numbers; got 1"),
        ({"scores": ["a", "b"]}, "'tokenizer.ggml.scores' must be there"),
        ({"add_space_prefix": True}, "'tokenizer.ggml.add_space_prefix' must be false; got true"),
        ({"tokens": ["a" * 1025], "scores": [0.0], "token_type": [1]}, "at most 1024 characters; got 1025"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sentence_piece_fields_are_checked(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path / "file", **sentence_piece_fields() | changes)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path)


def test_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    for content, message in (
        (b"", "is empty"),
        (b"GGUF", "the version must have 4 bytes"),
        (gguf([], [], b""), "'tokenizer.ggml.model' must be 'gpt2' or 'llama'; got None"),
        (b"[]", "must be a GGUF file, or a JSON object"),
        (b"{}", "no tokenizer can be made of it"),
        (b'{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}}', "no tokenizer can be made of it"),
        (b'{"a":' * 10_000, "no tokenizer can be made of it"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: .*{message}|{path} {message}"):
            load_tokenizer(path)
    monkeypatch.setattr("jattn.pretrained.tokenizer.LARGEST_JSON", 1)
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match="a JSON object of at most 1 bytes"):
        load_tokenizer(path)


def test_mutated_tokenizer_json(tmp_path: Path) -> None:
    own = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel()
    own.add_special_tokens([AddedToken("<s>", special=True)])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    whole = own.to_str().encode()
    path = tmp_path / "file"

    @FAST
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = whole
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(1, len(content)))
            new = data.draw(
                st.one_of(st.sampled_from([b'"', b"[", b"{", b"null", b"-1", b"1e9", b"9" * 30]), st.binary())
            )
            content = content[:place] + new + content[place + data.draw(st.sampled_from([0, len(new)])) :]
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            tokenizer = load_tokenizer(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert np.ndim(tokenizer.encode("ab").ids) == 1

    check()
