# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from lilliput.containers import open_model
from lilliput.containers.gguf_model import GgufModel, open_parts
from lilliput.containers.gguf_reader import GgufFile
from lilliput.errors import CheckpointError, ContainerError, TokenizerError, UnsupportedModelError
from lilliput.text.gguf_metadata import vocabulary_from_metadata


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def file_bytes(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = magic + version + struct.pack("<QQ", tensor_count, key_count) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


F32 = 0
U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
ALIGNMENT = key("general.alignment", U32, struct.pack("<I", 32))

BAD = {
    "empty": (b"", "is empty; download it"),
    "magic": (file_bytes(magic=b"GGML"), "starts with 'GGML' instead of 'GGUF'"),
    "version 1": (file_bytes(version=struct.pack("<I", 1)), "GGUF version 1 cannot be read"),
    "version 4": (file_bytes(version=struct.pack("<I", 4)), "GGUF version 4 cannot be read"),
    "endianness": (file_bytes(version=struct.pack(">I", 3)), "is big-endian GGUF"),
    "cut in the version": (b"GGUF\x03", "truncated: the version"),
    "cut in the counts": (b"GGUF\x03\0\0\0\0", "truncated: the tensor count"),
    "keys": (file_bytes(counts=(0, 1 << 60)), "claims 1152921504606846976 metadata keys"),
    "tensors": (file_bytes(counts=(1 << 60, 0)), "claims 1152921504606846976 tensors"),
    "long key": (
        file_bytes((struct.pack("<Q", 1 << 40),), counts=(0, 1), data=bytes(64)),
        "claims 1099511627776 bytes",
    ),
    "empty key": (file_bytes((key("", U32, bytes(4)),)), "has a name of 0 characters"),
    "key not UTF-8": (file_bytes((key(b"\xff\xfe", U32, bytes(4)),)), "is not valid UTF-8"),
    "key twice": (file_bytes((ALIGNMENT, ALIGNMENT)), "'general.alignment' appears twice"),
    "value type": (file_bytes((key("a", 13, bytes(4)),)), "'a' has unknown value type 13"),
    "boolean": (file_bytes((key("a", BOOL, b"\x02"),)), "boolean with value 2"),
    "long string": (file_bytes((key("a", STRING, struct.pack("<Q", 1000)),), data=bytes(64)), "claims 1000 bytes"),
    "array of arrays": (file_bytes((key("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "array of arrays"),
    "long array": (file_bytes((key("a", ARRAY, struct.pack("<IQ", U32, 1 << 50)),), data=bytes(64)), "values in 'a'"),
    "many strings": (file_bytes((key("a", ARRAY, struct.pack("<IQ", STRING, 1 << 50)),), data=bytes(64)), "strings in"),
    "long string in array": (
        file_bytes((key("a", ARRAY, struct.pack("<IQQ", STRING, 1, 500)),), data=bytes(64)),
        "string 0 of 'a' claims 500 bytes",
    ),
    "alignment 0": (file_bytes((key("general.alignment", U32, bytes(4)),)), "general.alignment is 0"),
    "alignment 48": (file_bytes((key("general.alignment", U32, struct.pack("<I", 48)),)), "general.alignment is 48"),
    "alignment text": (file_bytes((key("general.alignment", STRING, text("32")),)), "general.alignment is 32"),
    "nameless tensor": (file_bytes((), (tensor("", (8,), F32, 0),), bytes(32)), "empty name"),
    "tensor twice": (
        file_bytes((), (tensor("a", (8,), F32, 0), tensor("a", (8,), F32, 32)), bytes(64)),
        "'a' appears twice",
    ),
    "five axes": (file_bytes((), (tensor("a", (1,) * 5, F32, 0),), bytes(32)), "has 5 axes"),
    "no axes": (file_bytes((), (tensor("a", (), F32, 0),), bytes(32)), "has 0 axes"),
    "zero size": (file_bytes((), (tensor("a", (8, 0), F32, 0),), bytes(32)), "which is impossible"),
    "overflow": (file_bytes((), (tensor("a", (1 << 40, 1 << 40), F32, 0),), bytes(32)), "which is impossible"),
    "unknown type": (file_bytes((), (tensor("a", (8,), 99, 0),), bytes(32)), "'a' has unknown type 99"),
    "removed type": (file_bytes((), (tensor("a", (8,), 4, 0),), bytes(32)), "'a' has Q4_2, which ggml no longer has"),
    "ragged row": (
        file_bytes((), (tensor("a", (33,), 8, 0),), bytes(64)),
        "rows of 33 weights, not a multiple of Q8_0",
    ),
    "misaligned": (file_bytes((), (tensor("a", (8,), F32, 16),), bytes(64)), "not a multiple of the alignment 32"),
    "out of range": (file_bytes((), (tensor("a", (8,), F32, 64),), bytes(64)), "truncated: tensor 'a'"),
    "far out of range": (file_bytes((), (tensor("a", (8,), F32, 1 << 63),), bytes(64)), "truncated: tensor 'a'"),
    "cut data": (file_bytes((), (tensor("a", (8,), F32, 0),), bytes(31)), "truncated: tensor 'a'"),
    "overlap": (
        file_bytes((), (tensor("a", (16,), F32, 0), tensor("b", (8,), F32, 32)), bytes(64)),
        "'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, case: str) -> None:
    raw, says = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(ContainerError) as caught:
        open_model(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith("x.gguf: ")
    assert "\n" not in str(caught.value)


def test_every_kind_of_value_of_the_reference_writer_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_int32("a.i32", -7)
    writer.add_uint64("a.u64", 1 << 40)
    writer.add_int64("a.i64", -(1 << 40))
    writer.add_float32("a.f32", 1e-5)
    writer.add_float64("a.f64", 1e-300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "größe")
    writer.add_array("a.texts", ["x", "", "ß"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.flags", [True, False])
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert {name: value for name, value in file.metadata.items() if name.startswith("a.")} == {
        "a.u8": 200,
        "a.i8": -3,
        "a.u16": 60000,
        "a.i16": -30000,
        "a.i32": -7,
        "a.u64": 1 << 40,
        "a.i64": -(1 << 40),
        "a.f32": 1e-5,
        "a.f64": 1e-300,
        "a.bool": True,
        "a.text": "größe",
        "a.texts": ["x", "", "ß"],
        "a.numbers": [1, 2, 3],
        "a.flags": [True, False],
    }
    assert file.tensors["matrix"].shape == (3, 4)
    assert np.array_equal(file.float32("matrix"), array)


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_bytes((ALIGNMENT,), (tensor("a", (8,), F32, 0),), bytes(32), version=struct.pack("<I", 2)))
    assert GgufFile(path).tensors["a"].nbytes == 32


def test_text_that_is_not_utf8_survives(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_bytes((key("a", STRING, text(b"\x80ok")),)))
    value = GgufFile(path).metadata["a"]
    assert isinstance(value, str)
    assert value.encode("utf-8", "surrogateescape") == b"\x80ok"


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_bytes((key("general.architecture", STRING, text("mammoth")),)))
    with pytest.raises(UnsupportedModelError, match="mammoth"):
        open_model(path)


def test_a_file_that_holds_no_model_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_bytes((key("general.type", STRING, text("imatrix")),)))
    with pytest.raises(ContainerError, match=r"x.gguf: holds 'imatrix' data, not a model"):
        open_model(path)


def test_a_vocabulary_alone_is_no_model(shared_data: Path) -> None:
    with pytest.raises(ContainerError, match="holds a vocabulary without weights"):
        open_model(shared_data / "gguf-vocab" / "ggml-vocab-llama-spm.gguf")


def test_a_folder_of_gguf_files_asks_for_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "a-Q4_K_M.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"give one of them, such as .*a-Q4_K_M.gguf"):
        open_model(tmp_path)


def test_only_float32_tensors_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(file_bytes((), (tensor("a", (16,), 1, 0),), bytes(32)))
    file = GgufFile(path)
    assert file.size == len(path.read_bytes())
    with pytest.raises(ContainerError, match="'a' is F16, F32 is expected"):
        file.float32("a")


@pytest.mark.parametrize(("kind", "name", "size"), [(9, "Q8_1", 36), (15, "Q8_K", 292)])
def test_types_that_store_no_weights_are_named(tmp_path: Path, kind: int, name: str, size: int) -> None:
    from lilliput.containers.gguf_types import format_of

    path = tmp_path / "x.gguf"
    columns = {9: 32, 15: 256}[kind]
    path.write_bytes(file_bytes((), (tensor("a", (columns,), kind, 0),), bytes(size)))
    found = GgufFile(path).tensors["a"]
    assert found.nbytes == size
    with pytest.raises(ContainerError, match=f"tensor 'a' has type {name}"):
        format_of("a", found.type)


@pytest.mark.parametrize("name", ["token_type", "scores"])
def test_token_lists_of_unequal_length_are_refused(name: str) -> None:
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b"], f"tokenizer.ggml.{name}": [1]}
    with pytest.raises(TokenizerError, match="has 1 entries for 2 tokens"):
        vocabulary_from_metadata(keys)


def part(number: int, count: int, names: str, total: int | None) -> bytes:
    keys = [key("split.no", 2, struct.pack("<H", number)), key("split.count", 2, struct.pack("<H", count))]
    if total is not None:
        keys.append(key("split.tensors.count", 5, struct.pack("<i", total)))
    tensors = tuple(tensor(name, (8,), F32, 32 * index) for index, name in enumerate(names))
    return file_bytes(tuple(keys), tensors, bytes(32 * len(names)))


def test_a_split_opens_by_any_part(tmp_path: Path) -> None:
    for number, names in enumerate(("ab", "c")):
        (tmp_path / f"x-{number + 1:05d}-of-00002.gguf").write_bytes(part(number, 2, names, 3))
    for number in (1, 2):
        parts = open_parts(tmp_path / f"x-{number:05d}-of-00002.gguf")
        assert [list(file.tensors) for file in parts] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("files", "opened", "says"),
    [
        ({"x-00001-of-00002.gguf": (0, 2, "a", 2)}, "x-00001-of-00002.gguf", "part 2 of 2 is missing"),
        ({"x.gguf": (0, 2, "a", 2)}, "x.gguf", "must end in -00001-of-00002.gguf"),
        (
            {"x-00001-of-00002.gguf": (0, 2, "a", 2), "x-00002-of-00002.gguf": (0, 2, "b", 2)},
            "x-00001-of-00002.gguf",
            "says it is part 0 of 2",
        ),
        (
            {"x-00001-of-00002.gguf": (0, 2, "a", 2), "x-00002-of-00002.gguf": (1, 2, "a", 2)},
            "x-00001-of-00002.gguf",
            "'a' is in two parts",
        ),
        (
            {"x-00001-of-00002.gguf": (0, 2, "a", 3), "x-00002-of-00002.gguf": (1, 2, "b", 3)},
            "x-00002-of-00002.gguf",
            "promises 3 tensors, its 2 parts hold 2",
        ),
        ({"x-00001-of-00000.gguf": (0, 0, "a", 1)}, "x-00001-of-00000.gguf", "split.count is 0"),
    ],
)
def test_a_split_that_does_not_fit_together_is_one_clear_line(
    tmp_path: Path, files: dict[str, tuple[int, int, str, int]], opened: str, says: str
) -> None:
    for name, description in files.items():
        (tmp_path / name).write_bytes(part(*description))
    with pytest.raises(ContainerError, match=says):
        GgufModel(tmp_path / opened)


@pytest.mark.parametrize(
    ("name", "size", "bos", "last"),
    [
        ("llama-spm", 32000, 1, "给"),
        ("gpt-2", 50257, 50256, "<|endoftext|>"),
        ("bert-bge", 30522, 101, "\uff5e"),
    ],
)
def test_real_vocabularies_are_read(shared_data: Path, name: str, size: int, bos: int, last: str) -> None:
    vocabulary = vocabulary_from_metadata(GgufFile(shared_data / "gguf-vocab" / f"ggml-vocab-{name}.gguf").metadata)
    assert len(vocabulary.tokens) == len(vocabulary.token_types) == size
    assert vocabulary.bos_token_id == bos
    assert vocabulary.tokens[-1] == last
