"""Files of each format, written by the library that the format belongs to or by hand, and read."""

import json
import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import weight_files
from gguf import GGMLQuantizationType as Quantisation
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from weight_files import ctranslate2, ctranslate2_variable, pickled, tensor, write_checkpoint

from jattn.pretrained import open_weights
from jattn.pretrained.pickles import Global

GENERATOR = np.random.default_rng(0)
PLAIN = {
    "f32": GENERATOR.normal(size=(3, 4)).astype(np.float32),
    "f16": GENERATOR.normal(size=(2, 3, 4)).astype(np.float16),
    "f64": GENERATOR.normal(size=5),
    "i8": np.array([[-128, 127]], np.int8),
    "i16": np.array([-300, 300], np.int16),
    "i32": np.array([-70_000], np.int32),
    "i64": np.array([1 << 40]),
}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def write_gguf(path: Path, quantised: dict[Quantisation, np.ndarray]) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_float32("a.float", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_array("a.numbers", [1, 2, -3])
    writer.add_array("a.truths", [True, False])
    writer.add_array("a.strings", ["one", "", "zwölf"])
    for name, array in PLAIN.items():
        writer.add_tensor(name, array)
    for kind, blocks in quantised.items():
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "no-such-suffix.bin"
    values = GENERATOR.normal(size=(3, 64)).astype(np.float32)
    kinds = [Quantisation[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
    blocks = {kind: quantize(values, kind) for kind in kinds}
    for kind in (Quantisation.Q2_K, Quantisation.Q3_K, Quantisation.Q4_K, Quantisation.Q5_K, Quantisation.Q6_K):
        # Any bytes are blocks, but for the scales, which as half numbers may be infinite.
        blocks[kind] = GENERATOR.integers(0, 60, (2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    write_gguf(path, blocks)
    weights = open_weights(path)
    assert weights.format == "GGUF"
    assert list(weights.tensors) == [*PLAIN, *(kind.name for kind in blocks)]
    for name, array in PLAIN.items():
        same(weights.tensors[name], array)
    for kind, content in blocks.items():
        same(weights.tensors[kind.name], dequantize(content, kind))
    peer = GGUFReader(path)
    for found in peer.tensors:
        if found.name not in PLAIN:
            same(weights.tensors[found.name], dequantize(found.data, found.tensor_type))
    for key, value in weights.metadata.items():
        value = value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, tuple) else value
        assert value == peer.fields[key].contents()
    assert weights.metadata["a.strings"] == ("one", "", "zwölf")
    assert weights.metadata["a.numbers"].dtype == np.int32


def test_blocks_of_32_by_hand(tmp_path: Path) -> None:
    """Q4_1: scale and least value, then sixteen bytes, whose low halves are the first sixteen numbers; Q8_0: scale,
    then numbers of a byte each. https://github.com/ggml-org/ggml, src/ggml-common.h."""
    scale, least = np.float16(0.37), np.float16(-1.5)
    codes = np.arange(32) * 5 % 16
    packed = struct.pack("<2e", scale, least) + bytes((codes[:16] | codes[16:] << 4).astype(np.uint8))
    signed = np.arange(-16, 16, dtype=np.int8)
    path = tmp_path / "file"
    told = [weight_files.gguf_tensor("q4_1", [32, 1], 3, 0), weight_files.gguf_tensor("q8_0", [32], 8, 32)]
    data = packed + bytes(12) + struct.pack("<e", scale) + signed.tobytes()
    path.write_bytes(weight_files.gguf([], told, data))
    tensors = open_weights(path).tensors
    same(tensors["q4_1"], (np.float32(scale) * codes.astype(np.float32) + np.float32(least))[None])
    same(tensors["q8_0"], np.float32(scale) * signed.astype(np.float32))


def test_bfloat16_in_gguf(tmp_path: Path) -> None:
    expected = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    told = weight_files.gguf_tensor("t", [2, 1], 30, 0)
    (tmp_path / "file").write_bytes(weight_files.gguf([], [told], expected.tobytes()))
    same(open_weights(tmp_path / "file").tensors["t"], expected)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    arrays = PLAIN | {"bool": np.array([True, False]), "u8": np.array([255], np.uint8), "none": np.zeros((0, 3), "f4")}
    arrays |= {"scalar": np.array(2.5, np.float32), "u64": np.array([1 << 63], np.uint64)}
    save_file(arrays, path, metadata={"format": "np"})
    weights = open_weights(path)
    assert weights.format == "safetensors"
    assert weights.metadata == {"format": "np"}
    assert set(weights.tensors) == set(arrays)
    for name, array in arrays.items():
        same(weights.tensors[name], array)


def test_bfloat16_and_float8_in_safetensors(tmp_path: Path) -> None:
    arrays = {
        "BF16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "F8_E4M3": np.array([1.5, 448], ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.array([1.5, 57344], ml_dtypes.float8_e5m2),
    }
    header, data = {}, b""
    for kind, array in arrays.items():
        header[kind] = {"dtype": kind, "shape": [2], "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    (tmp_path / "file").write_bytes(weight_files.safetensors(json.dumps(header), data))
    for kind, array in arrays.items():
        same(open_weights(tmp_path / "file").tensors[kind], array)


def test_ctranslate2(tmp_path: Path) -> None:
    arrays = {
        "encoder/scale": np.array(3.5, np.float32),
        "encoder/weight": GENERATOR.normal(size=(3, 5)).astype(np.float16),
        "encoder/weight_scale": np.array([1, -2, 3], np.int8),
        "encoder/odd": np.array([[7, -7]], np.int16),
        "encoder/heads": np.array([1 << 20], np.int32),
        "encoder/brain": np.array([1.5], ml_dtypes.bfloat16),
    }
    kinds = {np.dtype(t): k for k, t in enumerate(("f4", "i1", "i2", "i4", "f2", ml_dtypes.bfloat16))}
    listed = [ctranslate2_variable(n, a.shape, kinds[a.dtype], a.tobytes()) for n, a in arrays.items()]
    path = tmp_path / "file"
    path.write_bytes(ctranslate2(listed, [("decoder/projection/weight", "encoder/weight")]))
    weights = open_weights(path)
    assert weights.format == "CTranslate2"
    assert weights.metadata == {"specification": "WhisperSpec", "revision": 3}
    for name, array in arrays.items():
        same(weights.tensors[name], array)
        assert weights.tensors[name].flags.aligned
    same(weights.tensors["decoder/projection/weight"], arrays["encoder/weight"])


def test_a_checkpoint_by_hand(tmp_path: Path) -> None:
    numbers = GENERATOR.normal(size=24).astype(np.float32)
    brain = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    tree = {
        "model": {
            "whole": tensor("0", 24, (4, 6), (6, 1)),
            "transposed": tensor("0", 24, (6, 4), (1, 6)),
            "slice": tensor("0", 24, (2, 3), (12, 2), offset=1),
            "scalar": tensor("0", 24, (), (), offset=23),
            "none": tensor("0", 24, (0, 5), (5, 1)),
            "brain": tensor("1", 2, (2,), (1,), storage=Global("torch", "BFloat16Storage")),
        },
        "epoch": 7,
        "loss": 0.25,
        "name": "tiny",
        "list": [1, {"kept": "not"}],
    }
    path = tmp_path / "file"
    write_checkpoint(path, pickled(tree), {"0": numbers.tobytes(), "1": brain.tobytes()}, byteorder=b"little")
    weights = open_weights(path)
    assert weights.format == "zip checkpoint of torch"
    assert weights.metadata == {"epoch": 7, "loss": 0.25, "name": "tiny"}
    square = numbers.reshape(4, 6)
    expected = {
        "whole": square,
        "transposed": square.T,
        "slice": square[::2, 1:6:2],
        "scalar": square[3, 5],
        "none": np.zeros((0, 5), np.float32),
        "brain": brain,
    }
    assert list(weights.tensors) == [f"model.{name}" for name in expected]
    for name, array in expected.items():
        same(weights.tensors[f"model.{name}"], array)


def test_a_checkpoint_of_torchs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.float64)
    module[0].bias.data = module[0].bias.data.to(torch.bfloat16)
    shared = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    tree = {"module": module.state_dict(), "shared": shared, "view": shared.T[1:, ::2], "steps": 3, "lists": [shared]}
    path = tmp_path / "file"
    torch.save(tree, path)
    weights = open_weights(path)
    assert weights.metadata == {"steps": 3}
    flat = {f"module.{name}": value for name, value in module.state_dict().items()}
    flat |= {"shared": shared, "view": tree["view"]}
    assert list(weights.tensors) == list(flat)
    for name, value in flat.items():
        if value.dtype == torch.bfloat16:
            same(weights.tensors[name].astype(np.float32), value.float().numpy())
        else:
            same(weights.tensors[name], value.numpy())
    # And torch reads what these tests write by hand.
    write_checkpoint(path, pickled({"t": tensor("0", 2, (2,), (1,))}), {"0": struct.pack("<2f", 1, 2)}, version=b"3\n")
    assert torch.load(path, weights_only=True)["t"].tolist() == [1, 2]


def test_plain_numbers_are_views_of_the_file(tmp_path: Path) -> None:
    save_file({"t": np.arange(4.0)}, tmp_path / "file")
    tensors = open_weights(tmp_path / "file").tensors
    first, second = tensors["t"], tensors["t"]
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    assert "t" in tensors
    assert "u" not in tensors
    with pytest.raises(KeyError):
        tensors["u"]


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_weights(tmp_path / "none")
    for content, message in ((b"", "is empty"), (b"GIF89a" + bytes(20), "must begin as one of GGUF, .*474946383961")):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_weights(tmp_path / "file")
