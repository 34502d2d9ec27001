# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lilliput.checkpoints.safetensors_reader import SafetensorsFile, decode_float32
from lilliput.errors import CheckpointError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes = bytes(8)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_tensors_of_the_reference_writer_are_read_back(tmp_path: Path) -> None:
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "single": np.linspace(-1, 1, 5, dtype=np.float32),
        "bytes": np.arange(3, dtype=np.uint8),
        "wide": np.array([1.5, -2.5]),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert file.tensors[name].shape == array.shape
        assert np.array_equal(file.float32(name), array.astype(np.float32))


def test_known_values_of_eight_bit_floats() -> None:
    codes = np.array([0x00, 0x38, 0x7E, 0xFE, 0x01], dtype=np.uint8)
    assert decode_float32("F8_E4M3", codes).tolist() == [0.0, 1.0, 448.0, -448.0, 2.0**-9]
    assert decode_float32("F8_E8M0", np.array([127, 128, 0], dtype=np.uint8)).tolist() == [1.0, 2.0, 2.0**-127]
    assert np.isnan(decode_float32("F8_E8M0", np.array([255], dtype=np.uint8))).all()
    assert decode_float32("F8_E5M2", np.array([0x3C, 0x7B], dtype=np.uint8)).tolist() == [1.0, 57344.0]


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    data = np.array([0x3F80, 0xC040], dtype="<u2").view(np.uint8)
    assert decode_float32("BF16", data).tolist() == [1.0, -3.0]


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
        (b"\xff\xfe", b"", "not valid JSON"),
        ({"__metadata__": {"a": 1}}, b"", "map text to text"),
        ({"a": {"dtype": "F32"}}, b"", "needs dtype, shape and data_offsets"),
        ({"a": {**ENTRY, "dtype": "F4"}}, bytes(8), "unknown dtype F4"),
        ({"a": {**ENTRY, "shape": [-2]}}, bytes(8), "no valid shape"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8), "no valid shape"),
        ({"a": {**ENTRY, "shape": [1] * 9}}, bytes(8), "no valid shape"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8), "no valid data_offsets"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "offsets span -8"),
        ({"a": {**ENTRY, "shape": [3]}}, bytes(8), "needs 12 bytes"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "'b' overlaps"),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, bytes(20), "4 stray bytes before tensor 'b'"),
        ({"a": ENTRY}, bytes(7), "truncated: tensor 'a'"),
        ({"a": ENTRY}, bytes(9), "1 stray bytes after"),
        (b'{"a": {}, "a": {}}', b"", "'a' appears twice"),
    ],
)
def test_a_damaged_header_is_one_clear_line(tmp_path: Path, header: object, data: bytes, says: str) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=says) as caught:
        SafetensorsFile(path)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "too short"),
        (b"\x01\x02", "too short"),
        (struct.pack("<Q", 1 << 60) + bytes(16), "above the limit"),
        (struct.pack("<Q", 100) + b"{}", "truncated: the header needs 108 bytes"),
    ],
)
def test_a_file_without_a_whole_header_is_one_clear_line(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=says):
        SafetensorsFile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent.safetensors: cannot be read"):
        SafetensorsFile(tmp_path / "absent.safetensors")


def test_integers_hold_no_weights_but_indexes_and_booleans_do_read(tmp_path: Path) -> None:
    save_file({"mask": np.array([True, False])}, tmp_path / "x.safetensors")
    assert SafetensorsFile(tmp_path / "x.safetensors").float32("mask").tolist() == [1.0, 0.0]
