# SPDX-License-Identifier: Apache-2.0
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import save_file

from lilliput.calibration.imatrix import read_imatrix, write_imatrix
from lilliput.calibration.statistics_file import merge, read_statistics, write_statistics
from lilliput.errors import CalibrationError, ContainerError
from lilliput.records import InputStatistics, Statistics


def made(seed: int = 0, model: str = "aa") -> Statistics:
    generator = np.random.default_rng(seed)

    def entry(size: int) -> InputStatistics:
        rows = generator.normal(size=(10 + seed, size)).astype(np.float32)
        return InputStatistics(len(rows), (rows.astype(np.float64) ** 2).sum(axis=0), np.abs(rows).max(axis=0))

    shared, single = entry(8), entry(12)
    inputs = {"blk.0.attn_q.weight": shared, "blk.0.attn_k.weight": shared, "blk.0.ffn_down.weight": single}
    return Statistics(inputs, chunks=5 + seed, chunk_size=2, datasets=(f"text{seed}.txt",), model=model)


def assert_same(first: InputStatistics, second: InputStatistics) -> None:
    assert first.tokens == second.tokens
    np.testing.assert_array_equal(first.sum_of_squares, second.sum_of_squares)
    np.testing.assert_array_equal(first.absmax, second.absmax)


def test_a_statistics_file_gives_back_every_number_and_which_entries_are_shared(tmp_path: Path) -> None:
    written = made()
    write_statistics(tmp_path / "s.safetensors", written)
    read = read_statistics(tmp_path / "s.safetensors")
    assert replace(read, inputs={}) == replace(written, inputs={})
    assert set(read.inputs) == set(written.inputs)
    for name, entry in written.inputs.items():
        assert_same(read.inputs[name], entry)
    assert read.inputs["blk.0.attn_q.weight"] is read.inputs["blk.0.attn_k.weight"]
    assert list(tmp_path.iterdir()) == [tmp_path / "s.safetensors"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf"])
def test_a_statistics_file_may_be_read_by_whom_other_new_files_may(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_statistics(tmp_path / name, made())
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


def test_merged_statistics_are_those_of_both_texts() -> None:
    first, second = made(0), made(1)
    both = merge(first, second)
    for name, entry in both.inputs.items():
        assert_same(entry, first.inputs[name].merged(second.inputs[name]))
    assert both.inputs["blk.0.attn_q.weight"] is both.inputs["blk.0.attn_k.weight"]
    assert (both.chunks, both.datasets) == (11, ("text0.txt", "text1.txt"))


def test_statistics_of_two_models_do_not_merge() -> None:
    with pytest.raises(CalibrationError, match="two models"):
        merge(made(0), made(1, model="bb"))
    assert merge(made(0), made(1, model="")).model == "aa"


def test_statistics_of_other_sizes_do_not_merge() -> None:
    small = InputStatistics(1, np.ones(3), np.ones(3, dtype=np.float32))
    with pytest.raises(CalibrationError, match=r"blk\.0\.attn_q\.weight: one file has 8 input features, the other 3"):
        merge(made(0), replace(made(1), inputs={"blk.0.attn_q.weight": small}))


def test_chunks_of_another_size_are_counted_in_ours() -> None:
    assert merge(made(0), replace(made(1), chunks=3, chunk_size=5)).chunks == 5 + 8


def test_an_imatrix_file_gives_back_sums_to_float32_and_no_maxima(tmp_path: Path) -> None:
    written = made()
    write_statistics(tmp_path / "i.gguf", written)
    read = read_statistics(tmp_path / "i.gguf")
    assert (read.chunks, read.chunk_size, read.datasets, read.model) == (5, 2, ("text0.txt",), "")
    for name, entry in written.inputs.items():
        assert read.inputs[name].tokens == entry.tokens
        np.testing.assert_array_equal(read.inputs[name].sum_of_squares, entry.sum_of_squares.astype(np.float32))
        assert np.isnan(read.inputs[name].absmax).all()


def test_an_imatrix_file_has_the_keys_and_shapes_that_llama_cpp_reads(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", made())
    reader = GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text0.txt"]
    assert [reader.fields[f"imatrix.chunk_{key}"].contents() for key in ("count", "size")] == [5, 2]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.ffn_down.weight.in_sum2"].shape.tolist() == [12, 1]
    assert tensors["blk.0.ffn_down.weight.counts"].data.tolist() == [[10.0]]


def legacy(mean_square: list[float], calls: int, tail: bytes = b"") -> bytes:
    name = b"blk.0.ffn_down.weight"
    values = struct.pack(f"<{len(mean_square)}f", *(value * calls for value in mean_square))
    return struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", calls, len(mean_square)) + values + tail


@pytest.mark.parametrize("tail", [b"", struct.pack("<ii", 3, 9) + b"/a/wt.txt"])
def test_the_older_imatrix_form_is_read(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "i.dat").write_bytes(legacy([0.25, 4.0], 3, tail))
    read = read_statistics(tmp_path / "i.dat")
    assert read.chunks == 3
    assert read.datasets == (("wt.txt",) if tail else ())
    np.testing.assert_allclose(read.inputs["blk.0.ffn_down.weight"].input_mean_square, [0.25, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: b"\x05" + data[1:],
        lambda data: data[:4] + struct.pack("<i", -2) + data[8:],
        lambda data: b"",
        lambda _: legacy([-1.0], 1),
        lambda _: legacy([float("nan")], 1),
        lambda _: legacy([1.0], 0),
        lambda _: struct.pack("<i", 0),
    ],
)
def test_a_damaged_older_imatrix_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "i.dat").write_bytes(damage(legacy([0.25, 4.0], 3)))
    with pytest.raises(CalibrationError, match=r"i\.dat"):
        read_imatrix(tmp_path / "i.dat")


def test_damaged_statistics_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "s.safetensors"
    write_statistics(good, made())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-5])
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, other)
    imatrix = tmp_path / "i.gguf"
    write_statistics(imatrix, made())
    imatrix.write_bytes(imatrix.read_bytes()[:-40])
    for path in (cut, other, imatrix, tmp_path / "missing"):
        with pytest.raises((CalibrationError, ContainerError), match=path.name):
            read_statistics(path)


def test_negative_sums_are_refused(tmp_path: Path) -> None:
    bad = replace(made(), inputs={"a": InputStatistics(1, np.array([-1.0]), np.ones(1, dtype=np.float32))})
    write_statistics(tmp_path / "s.safetensors", bad)
    with pytest.raises(CalibrationError, match="not negative"):
        read_statistics(tmp_path / "s.safetensors")
