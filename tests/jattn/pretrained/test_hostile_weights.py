"""Files of weights that are damaged or made to harm: each ends in a ValueError that says why, in little memory."""

import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from weight_files import (
    FLOAT,
    REBUILD,
    ctranslate2,
    ctranslate2_variable,
    gguf,
    gguf_field,
    gguf_tensor,
    outcome,
    outcome_of,
    pickled,
    safetensors,
    string,
    tensor,
    write_checkpoint,
)

from jattn.pretrained.pickles import Call, Global, Persistent, read_pickle

HUGE = 1 << 60
U64, FLOATS = struct.Struct("<Q").pack, struct.Struct("<4f").pack(1, 2, 3, 4)


def refused(path: Path, content: bytes, message: str) -> None:
    assert_refused(outcome(path, content), message)


def assert_refused(result: ValueError | dict[str, np.ndarray], message: str) -> None:
    assert isinstance(result, ValueError)
    assert re.search(message, str(result))


def one(shape: list[int], kind: int = 0, offset: int = 0, data: bytes = FLOATS) -> bytes:
    """A GGUF file with a tensor."""
    return gguf([], [gguf_tensor("t", shape, kind, offset)], data)


STRINGS = struct.pack("<I", 8)
ALIGNMENT = "general.alignment"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf([], [], b"", version=1), "the version must be one of .* got 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "the version must be .* little-endian; got 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"the number of tensors must be at most 100000; got {HUGE}"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "the number of fields must be at most 100000"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 99_999, 0),
            r"the length of a tensor's name must have 8 bytes at 24",
        ),
        (gguf([U64(HUGE)], [], b""), "a field's name must have at most 4096 bytes"),
        (gguf([gguf_field("k", 8, U64(HUGE))], [], b""), f"field 'k' must end in the header, .* it has {HUGE}"),
        (gguf([gguf_field("k", 8, U64(1000))], [], b""), r"field 'k' must have 1000 bytes at 45; the file has 19 more"),
        (
            gguf([gguf_field("k", 9, STRINGS + U64(HUGE))], [], b""),
            "field 'k' must list strings that",
        ),
        (gguf([gguf_field("k", 9, STRINGS + U64(10**6))], [], b""), "field 'k' must end in the header, at byte"),
        (gguf([gguf_field("k", 9, struct.pack("<IQ", 0, HUGE))], [], b""), "field 'k' must end in the header"),
        (gguf([gguf_field("k", 9, struct.pack("<IQ", 9, 1))], [], b""), "field 'k' must list numbers or strings; got"),
        (gguf([gguf_field("k", 13, b"")], [], b""), "field 'k' must be of a type from 0 to 12; got 13"),
        (gguf([gguf_field("k", 8, string(b"\xff"))], [], b""), "field 'k' must be UTF-8"),
        (gguf([gguf_field("k", 0, b"\x01")] * 2, [], b""), "field 'k' must come once"),
        (gguf([gguf_field(ALIGNMENT, 4, struct.pack("<I", 0))], [], b""), "'general.alignment' must be a power of two"),
        (gguf([gguf_field(ALIGNMENT, 4, struct.pack("<I", 3))], [], b""), "must be a power of two; got 3"),
        (gguf([gguf_field(ALIGNMENT, 8, string("32"))], [], b""), "must be a power of two; got '32'"),
        (gguf([], [gguf_tensor("t", [1], 0, 0)] * 2, FLOATS), "tensor 't' must come once"),
        (one([1] * 9), "tensor 't' must have at most 8 axes; got 9"),
        (one([HUGE, HUGE]), "'t' must end in the file"),
        (one([1 << 63]), "tensor 't' must have at most 8 axes, of 0 to"),
        (one([5]), "'t' must end in the file, of 80 bytes; it has bytes 64 to 84"),
        (one([4], offset=HUGE), "'t' must end in the file"),
        (one([4], offset=4), "tensor 't' must begin at a multiple of 32; its offset is 4"),
        (one([4], kind=4), "tensor 't' is of type 4, which is not read"),
        (one([4], kind=9), "tensor 't' is of type 9, which is not read"),
        (one([4], kind=1 << 31), "which is not read"),
        (one([31], kind=8, data=bytes(40)), r"tensor 't' must have rows of whole blocks of 32; its shape is \(31,\)"),
        (one([], kind=8, data=bytes(40)), "must have rows of whole blocks"),
        (
            gguf([], [gguf_tensor("a", [16], 0, 0), gguf_tensor("b", [8], 0, 32)], bytes(64)),
            "'b' must begin after 'a', at byte 160 or later; it begins at 128",
        ),
    ],
)
def test_gguf_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    refused(tmp_path / "file", content, message)


def test_the_header_of_gguf_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jattn.pretrained.gguf.LARGEST_HEADER", 100)
    message = "the header must have at most 100 bytes"
    refused(tmp_path / "file", gguf([gguf_field(f"key {n}", 0, b"\x01") for n in range(9)], [], b""), message)
    refused(tmp_path / "file", gguf([], [gguf_tensor(f"t{n}", [0], 0, 0) for n in range(9)], b""), message)


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "the header must be JSON"),
        ('{"a":' + "[" * 50_000, "the header must be JSON; maximum recursion"),
        ('{"a":1,"a":1}', "a name comes twice"),
        ('{"__metadata__":{"a":1}}', "'__metadata__' must be an object of strings"),
        ('{"__metadata__":[]}', "'__metadata__' must be an object of strings"),
        ('{"t":[]}', "tensor 't' must have dtype, shape and data_offsets, and nothing else"),
        (b'{"\xff":1}', "the header must be UTF-8"),
        ({"t": {"dtype": "F32", "shape": [4]}}, "tensor 't' must have dtype, shape and data_offsets"),
        ({"t": entry([4], 0, 16, "F31")}, "dtype of tensor 't' must be one of BOOL, .*; got 'F31'"),
        ({"t": {"dtype": [], "shape": [4], "data_offsets": [0, 16]}}, "dtype of tensor 't' must be one of"),
        ({"t": entry([-4], 0, 16)}, "tensor 't' must have at most 8 axes, of 0 to"),
        ({"t": entry([True] * 2, 0, 4)}, "shape of tensor 't' must be a list of whole numbers"),
        ({"t": entry([4.0], 0, 16)}, "shape of tensor 't' must be a list of whole numbers"),
        ({"t": entry([1] * 9, 0, 4)}, "must have at most 8 axes"),
        ({"t": entry([HUGE] * 8, 0, 16)}, "must have .* bytes; got 16"),
        ({"t": entry([4], 16, 0)}, "data_offsets of tensor 't' must be where it begins and ends"),
        ({"t": entry([4], -16, 0)}, "data_offsets of tensor 't' must be where it begins and ends"),
        ({"t": entry([5], 0, 16)}, r"tensor 't', float32 of shape \(5,\), must have 20 bytes; got 16"),
        ({"t": entry([4], HUGE, HUGE + 16)}, "'t' must end in the file"),
        ({"a": entry([3], 0, 12), "b": entry([2], 8, 16)}, "'b' must begin after 'a'"),
        ({"a": entry([4], 0, 16), "b": entry([4], 0, 16, "I32")}, "'b' must begin after 'a'"),
        ({"t": entry([3], 4, 16)}, "tensors must fill the 16 bytes after the header; they have 12"),
        ({}, "tensors must fill the 16 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_safetensors_is_refused(tmp_path: Path, header: str | bytes | dict, message: str) -> None:
    header = json.dumps(header) if isinstance(header, dict) else header
    refused(tmp_path / "file", safetensors(header, FLOATS), message)


def test_lengths_that_safetensors_claims(tmp_path: Path) -> None:
    refused(tmp_path / "file", U64(HUGE) + b"{}", f"the header must have at most 8388608 bytes; got {HUGE}")
    refused(tmp_path / "file", U64(1000) + b"{}", "the header must have 1000 bytes at 8; the file has 2 more")
    refused(tmp_path / "file", safetensors('{"t":' + "1" * 5000 + "}"), "the header must be JSON")
    many = json.dumps({f"{n}": entry([0], 0, 0) for n in range(3)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jattn.pretrained.safetensors.LARGEST_COUNT", 2)
        refused(tmp_path / "file", safetensors(many), "an object of at most 2 tensors")


V = ctranslate2_variable("v", [4], 0, FLOATS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ctranslate2([V])[:-5], r"the number of aliases must have 4 bytes|the file has"),
        (ctranslate2([V]) + b"\0", "the file must end after its aliases; 1 bytes follow"),
        (ctranslate2([V, V]), "tensor 'v' must come once"),
        (ctranslate2([V], [("v", "v")]), "tensor 'v' must come once"),
        (ctranslate2([V], [("a", "b")]), "alias 'a' must name a variable; got 'b'"),
        (ctranslate2([ctranslate2_variable("v", [4], 6, FLOATS)]), "the type of tensor 'v' must be below 6; got 6"),
        (ctranslate2([ctranslate2_variable("v", [5], 0, FLOATS)]), "must have 20 bytes; got 16"),
        (ctranslate2([ctranslate2_variable("v", [1] * 9, 0, FLOATS)]), "must have at most 8 axes"),
        (ctranslate2([ctranslate2_variable("v", [1 << 31] * 8, 0, FLOATS)]), "must have .* bytes; got 16"),
        (
            ctranslate2([ctranslate2_variable("v", [1 << 29], 0, FLOATS, size=1 << 31)]),
            "tensor 'v' must have 2147483648 bytes",
        ),
        (ctranslate2([string("v", "<H")]), "a variable's name must end with a zero byte; got 'v'"),
        (ctranslate2([string("v" * 5000 + "\0", "<H")]), "a variable's name must have at most 4096 bytes"),
        (ctranslate2([])[:-8] + struct.pack("<I", 1 << 31), "the number of variables must be at most 100000"),
        (ctranslate2([V], version=5), "must begin as one of"),
    ],
)
def test_ctranslate2_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    refused(tmp_path / "file", content, message)


T = tensor("0", 4, (4,), (1,))
RAISED = b"\x80\x02cos\nsystem\nX\x07\0\0\0exit 99\x85R."
"""os.system("exit 99")"""
ITSELF = b"\x80\x02}q\0X\1\0\0\0ah\0s."
TWICE = b"\x80\x02}X\1\0\0\0a}q\0sX\1\0\0\0bh\0s."
DOUBLED = b"".join(b"K%c}(X\1\0\0\0ah%cX\1\0\0\0bh%cuq%cs" % (n, n, n, n + 1) for n in range(60))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RAISED, r"opcode GLOBAL at byte 2 of the pickle: os.system is not allowed"),
        (b"\x80\x02c__builtin__\neval\nX\1\0\0\0a\x85R.", "__builtin__.eval is not allowed"),
        (b"\x80\x02ctorch\nload\n.", "torch.load is not allowed"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "opcode PROTO at byte 0 .* the protocol must be 2; got 4"),
        (b"\x80\x02ios\nsystem\n.", "opcode INST at byte 2 of the pickle: is not read"),
        (b"\x80\x02(X\1\0\0\0ao.", "opcode OBJ at byte 9 of the pickle: is not read"),
        (b"\x80\x02NN\x81.", "opcode NEWOBJ"),
        (ITSELF, "dictionaries must be a tree of depth at most 16; 'a' is not"),
        (TWICE, "dictionaries must be a tree"),
        (b"\x80\x02}K\x40}q\0s" + DOUBLED + b".", "dictionaries must be a tree"),
        (b"\x80\x02" + b"}X\1\0\0\0a" * 20 + b"}" + b"s" * 20 + b".", "dictionaries must be a tree"),
        (b"\x80\x02}r\xff\xff\xff\x7f", "the pickle ends without|pickle exhausted"),
        (b"\x80\x02\x8e" + U64(HUGE) + b"abc.", "expected .* bytes|not read|must be"),
        (b"\x80\x02\x96" + U64(HUGE) + b"abc.", "expected .* bytes|not read|must be"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x80\x02h\x05.", "opcode BINGET at byte 2"),
        (b"\x80\x02s.", "opcode SETITEM at byte 2"),
        (b"\x80\x02(s.", "opcode SETITEM at byte 3 of the pickle: a mark is no value"),
        (b"\x80\x02}(X\1\0\0\0au.", "a key has no value"),
        (b"\x80\x02})Ns.", "keys must be text or whole numbers; got a tuple"),
        (b"\x80\x02NNa.", "must find a list; found a NoneType"),
        (b"\x80\x02NNR.", "must find a tuple; found a NoneType"),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "an ordered dictionary must begin empty"),
        (b"\x80\x02NNb.", "must find a dict; found a NoneType"),
        (b"\x80\x02NN.", "opcode STOP at byte 4"),
        (b"", "pickle exhausted|without an opcode STOP"),
        (pickled({"a.b": T, "a": {"b": T}}), "'a.b' must come once"),
        (pickled({"a" * 3000: {"a" * 3000: T}}), "names must have at most 4096 characters"),
        (pickled({"t": tensor("1", 4, (4,), (1,))}), "storage '1' of tensor 't' must have 4 numbers, .* none"),
        (pickled({"t": tensor("0", 5, (4,), (1,))}), "must have 5 numbers, float32; its bytes: 16"),
        (pickled({"t": tensor("0", 4, (5,), (1,))}), r"tensor 't' of shape \(5,\), strides \(1,\), offset 0, must"),
        (pickled({"t": tensor("0", 4, (4,), (1,), 1)}), "must lie in its storage of 4 numbers"),
        (pickled({"t": tensor("0", 4, (4,), (1,), -1)}), "and offset -1"),
        (pickled({"t": tensor("0", 4, (2,), (-1,), 3)}), r"strides \(-1,\)"),
        (pickled({"t": tensor("0", 4, (2, 2), (1,))}), r"has shape \(2, 2\), strides \(1,\)"),
        (pickled({"t": tensor("0", 4, (1 << 30, 1 << 30), (0, 0))}), "must lie in its storage of 4 numbers"),
        (pickled({"t": tensor("0", 4, (1 << 30, 2), (1 << 30, 1))}), "must lie in its storage"),
        (pickled({"t": tensor("0", 4, (True,), (1,))}), "tensor 't' must be a view of a storage of torch's"),
        (pickled({"t": tensor("0", 4, (-1,), (1,))}), "must have at most 8 axes"),
        (pickled({"t": tensor("0", 4, (4,), (1,), storage=REBUILD)}), "must be a view of a storage"),
        (pickled({"t": Call(FLOAT, ())}), "must be a view of a storage"),
        (pickled({"t": Call(REBUILD, (Persistent(1), 0, (1,), (1,), False, {}))}), "must be a view of a storage"),
    ],
)  # fmt: skip
def test_pickles_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    write_checkpoint(path, content, {"0": FLOATS})
    assert_refused(outcome_of(path), message)


def test_tuples_in_tuples_cost_what_the_pickle_costs() -> None:
    """A pickle of 300 bytes for a tuple that has 2 ** 60 leaves: never hashed, printed or walked."""
    doubled = b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"."
    assert isinstance(read_pickle(doubled, ()), tuple)
    with pytest.raises(ValueError, match="keys must be text or whole numbers"):
        read_pickle(doubled.replace(b"\x80\x02", b"\x80\x02}")[:-1] + b"Ns.", ())


def test_a_pickle_too_large(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checkpoint(path, b"}" * ((4 << 20) + 1), {})
    assert_refused(outcome_of(path), "archive/data.pkl must have at most 4194304 bytes; got 4194305")
    with pytest.raises(ValueError, match="a pickle must have at most 4194304 bytes"):
        read_pickle(b"}" * ((4 << 20) + 1), ())


def archive(path: Path) -> bytes:
    """A checkpoint of one tensor."""
    write_checkpoint(path, pickled({"t": T}), {"0": FLOATS})
    return path.read_bytes()


def test_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = archive(path)
    assert isinstance(outcome(path, whole), dict)
    central = whole.index(b"PK\1\2")
    end = whole.index(b"PK\5\6")

    def patched(place: int, content: bytes) -> bytes:
        return whole[:place] + content + whole[place + len(content) :]

    second = whole.index(b"PK\1\2", central + 1)
    for content, message in (
        (whole[:-30], "cannot be read as a zip archive"),
        (patched(end + 12, struct.pack("<I", 1 << 31)), "cannot be read as a zip archive"),
        (patched(central + 24, struct.pack("<I", 1 << 31)), "must be neither compressed nor encrypted"),
        (patched(central + 20, struct.pack("<II", 1 << 31, 1 << 31)), "must end in the file"),
        (patched(central + 8, b"\1"), "must be neither compressed nor encrypted"),
        (patched(second + 42, struct.pack("<I", 7)), "'archive/data/0' must have a header of its own; .* byte 7"),
        (patched(second + 42, struct.pack("<I", 0)), "must begin after"),
        (patched(whole.rindex(b"data/0"), b"data.p"), "it has 1|must be an archive|storage '0'"),
    ):
        refused(path, content, message)


def test_what_an_archive_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checkpoint(path, pickled({"t": T}), {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    assert_refused(outcome_of(path), "must be neither compressed nor encrypted")
    write_checkpoint(path, pickled({"t": T}), {"0": FLOATS}, byteorder=b"big")
    assert_refused(outcome_of(path), "the byte order must be little; got b'big'")
    write_checkpoint(path, pickled({"t": T}), {"0": FLOATS}, **{"more/data.pkl": b"N."})
    assert_refused(outcome_of(path), "one folder with data.pkl; it has 2")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("notes.txt", "none")
    assert_refused(outcome_of(path), "one folder with data.pkl; it has 0")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a/data.pkl", b"N.")
    assert_refused(outcome_of(path), "'a/data.pkl' must come once")


def test_the_table_of_contents_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jattn.pretrained.checkpoint.LARGEST_DIRECTORY", 100)
    refused(tmp_path / "file", archive(tmp_path / "file"), "the table of contents must have at most 100 bytes")


def test_counts_of_a_checkpoint_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jattn.pretrained.checkpoint.LARGEST_COUNT", 2)
    write_checkpoint(tmp_path / "file", pickled({"a": 1, "b": 2, "c": 3}), {})
    assert_refused(outcome_of(tmp_path / "file"), "must hold at most 2 tensors and values; got 3")


def test_nothing_of_a_pickle_is_called(tmp_path: Path) -> None:
    """The control: what this pickle calls does happen where Python's own reader reads it."""
    with pytest.raises(SystemExit):
        pickle.loads(b"\x80\x02c__builtin__\nexit\n)R.")
    write_checkpoint(tmp_path / "file", b"\x80\x02c__builtin__\nexit\n)R.", {})
    assert_refused(outcome_of(tmp_path / "file"), "__builtin__.exit is not allowed")


def test_what_is_read_is_not_too_strict(tmp_path: Path) -> None:
    """The smallest files that the cases above are changes of."""
    for content in (one([4]), safetensors(json.dumps({"t": entry([4], 0, 16)}), FLOATS), ctranslate2([V])):
        (array,) = outcome(tmp_path / "file", content).values()
        np.testing.assert_array_equal(array, [1, 2, 3, 4])
    assert Global("torch", "FloatStorage") == FLOAT
