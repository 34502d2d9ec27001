# SPDX-License-Identifier: Apache-2.0
"""Every container with every format it holds: written, published, reopened, equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from model_files import tiny_model
from safetensors.numpy import load_file

from lilliput.containers import CONTAINERS, open_model
from lilliput.containers.container import Container, Split
from lilliput.containers.gguf import Gguf
from lilliput.containers.gguf_types import BY_NAME, TENSOR_TYPES
from lilliput.containers.lilliput_safetensors import LilliputSafetensors
from lilliput.containers.publish import publish
from lilliput.formats import FORMATS, NumberFormat, PlaneSpec, get_format
from lilliput.records import QuantizedTensor

PAIRS = [
    pytest.param(container, number_format, id=f"{container.name}-{number_format.name}")
    for container in CONTAINERS
    for number_format in FORMATS.values()
    if container.holds(number_format)
]
SMALL = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64}


def assert_equal(written: dict[str, QuantizedTensor], path: Path) -> None:
    model = open_model(path)
    assert list(model.headers) == list(written)
    for name, tensor in written.items():
        found = model.tensor(name)
        assert (found.shape, found.format.name) == (tensor.shape, tensor.format.name)
        for plane, array in tensor.planes.items():
            assert np.array_equal(found.planes[plane], array)
        for key, array in tensor.sidecars.items():
            assert np.array_equal(found.sidecars[key], array)


@pytest.mark.parametrize(("container", "number_format"), PAIRS)
def test_what_is_written_is_read_back_bit_for_bit(
    container: Container, number_format: NumberFormat, tmp_path: Path
) -> None:
    contents, tensors = tiny_model(number_format, **SMALL)
    target = tmp_path / ("tiny" + container.suffix)
    published = publish(container, contents, tensors.values(), target)
    assert published.paths == (target,)
    assert published.nbytes == target.stat().st_size
    assert_equal(tensors, target)


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_config_vocabulary_and_provenance_survive(container: Container, tmp_path: Path) -> None:
    contents, tensors = tiny_model(**SMALL)
    contents = replace(contents, preset="Q4_K_M", metadata={"lilliput.recipe": "q4_k_m"})
    target = tmp_path / ("tiny" + container.suffix)
    publish(container, contents, tensors.values(), target)
    model = open_model(target)
    assert model.config == contents.config
    assert model.vocabulary() == contents.vocabulary
    assert {key: model.provenance.general[key] for key in contents.provenance.general} == contents.provenance.general
    assert model.provenance.extra["quantize.imatrix.file"] == "x"
    assert model.provenance.extra["lilliput.recipe"] == "q4_k_m"


def test_the_same_model_has_one_fingerprint_in_every_container(tmp_path: Path) -> None:
    contents, tensors = tiny_model(**SMALL)
    found = set()
    for container in CONTAINERS:
        target = tmp_path / ("tiny" + container.suffix)
        publish(container, contents, tensors.values(), target)
        found.add(open_model(target).fingerprint())
    other = {name: tensor for name, tensor in tensors.items() if name != "output_norm.weight"}
    changed = np.array(tensors["output_norm.weight"].planes["blocks"])
    changed[0, 0] ^= 1
    other["output_norm.weight"] = replace(tensors["output_norm.weight"], planes={"blocks": changed})
    publish(Gguf(), contents, [other[header.name] for header in contents.headers], tmp_path / "other.gguf")
    assert len(found) == 1
    assert open_model(tmp_path / "other.gguf").fingerprint() not in found


READABLE_BY_GGUF_PY = [
    number_format
    for number_format in FORMATS.values()
    if Gguf().holds(number_format) and number_format.name.upper() in gguf.GGMLQuantizationType.__members__
]


@pytest.mark.parametrize("number_format", READABLE_BY_GGUF_PY, ids=lambda item: item.name)
def test_gguf_py_reads_our_files_and_decodes_the_same_values(number_format: NumberFormat, tmp_path: Path) -> None:
    contents, tensors = tiny_model(number_format, **SMALL)
    target = tmp_path / "tiny.gguf"
    publish(Gguf(), contents, tensors.values(), target)
    reader = gguf.GGUFReader(target)
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    kind = gguf.GGMLQuantizationType[number_format.name.upper()]
    is_decodable = kind in gguf.quants._type_traits or number_format.name in ("f32", "f16")
    assert theirs.keys() == tensors.keys()
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output_norm.weight"):
        found, ours = theirs[name], tensors[name]
        assert found.tensor_type.name.lower() == ours.format.name
        assert tuple(int(size) for size in reversed(found.shape)) == ours.shape
        assert np.array_equal(np.asarray(found.data).reshape(-1).view(np.uint8), ours.planes["blocks"].reshape(-1))
        if not is_decodable:
            continue
        values = gguf.quants.dequantize(np.array(found.data), found.tensor_type)
        assert np.array_equal(values.reshape(ours.shape), ours.dequantize())


def test_the_table_of_ggml_types_is_ggufs_own() -> None:
    for theirs, (block_size, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if theirs is gguf.GGMLQuantizationType.Q8_1:
            # gguf 0.19 still has the two float32 fields that ggml made float16 in 2023; no file holds this type.
            continue
        ours = TENSOR_TYPES[int(theirs)]
        assert (ours.name, ours.block_size, ours.block_bytes) == (theirs.name.lower(), block_size, block_bytes)
    for number_format in FORMATS.values():
        if number_format.name in BY_NAME:
            assert Gguf().holds(number_format), number_format


def test_a_split_model_is_the_same_model(tmp_path: Path) -> None:
    contents, tensors = tiny_model(**SMALL)
    one = publish(Gguf(), contents, tensors.values(), tmp_path / "one.gguf")
    for split in (Split(max_bytes=300_000), Split(max_tensors=4)):
        target = tmp_path / f"split-{split.max_tensors}.gguf"
        parts = publish(Gguf(), contents, tensors.values(), target, split=split).paths
        assert len(parts) > 1
        assert [path.name for path in parts] == [
            f"{target.stem}-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)
        ]
        assert_equal(tensors, parts[-1])
        assert open_model(parts[0]).fingerprint() == open_model(one.paths[0]).fingerprint()


def test_our_own_layout_opens_in_the_safetensors_library(tmp_path: Path) -> None:
    contents, tensors = tiny_model(get_format("q4_k"), **SMALL)
    target = tmp_path / "tiny.safetensors"
    publish(LilliputSafetensors(), contents, tensors.values(), target)
    arrays = load_file(target)
    for name, tensor in tensors.items():
        assert np.array_equal(arrays[f"{name}.blocks"], tensor.planes["blocks"])


def test_our_own_layout_holds_sidecars_on_aligned_bytes(tmp_path: Path) -> None:
    contents, tensors = tiny_model(get_format("q6_k"), **SMALL)
    name = "blk.0.ffn_down.weight"
    outliers = {"outlier_values": np.array([1.5, -2.5, 3.5], dtype=np.float16), "order": np.arange(5, dtype=np.int32)}
    specs = {name: {key: PlaneSpec(array.dtype, array.shape) for key, array in outliers.items()}}
    tensors[name] = replace(tensors[name], sidecars=outliers)
    contents = replace(contents, sidecars=specs)
    target = tmp_path / "tiny.safetensors"
    publish(LilliputSafetensors(), contents, tensors.values(), target)
    assert_equal(tensors, target)
    (part,) = LilliputSafetensors().layout(contents, "x", Split())
    assert all(piece.start % 64 == 0 for tensor in part.tensors for piece in tensor.pieces)
