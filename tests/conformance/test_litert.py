# SPDX-License-Identifier: Apache-2.0
""".tflite files: written and read back by our own code. tests/external/test_litert_runs_our_files.py runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_models import contents_of, quantized_model
from random_models import CONFIGS, RandomModel

from lilliput.containers import container_for
from lilliput.containers.container import Split
from lilliput.containers.litert import container as litert
from lilliput.containers.litert.container import LiteRt
from lilliput.containers.litert.flatbuffer import Scalar, Table, serialize
from lilliput.containers.litert.reader import LiteRtFile
from lilliput.containers.publish import publish
from lilliput.errors import ContainerError, LilliputError
from lilliput.formats import FORMATS, NumberFormat

HELD = [item for item in FORMATS.values() if LiteRt().holds(item) and item.can_encode]


def written(model: RandomModel, folder: Path) -> Path:
    publish(LiteRt(), contents_of(model), model.tensors.values(), folder / "m.tflite")
    return folder / "m.tflite"


@pytest.mark.parametrize("number_format", HELD, ids=lambda item: item.name)
def test_what_is_written_is_read_back(number_format: NumberFormat, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS["llama"], number_format.name)
    path = written(model, tmp_path)
    file = LiteRtFile(path)
    assert set(file.weights) == set(model.tensors)
    for name, tensor in model.tensors.items():
        values = np.concatenate([part.reshape(-1) for part in file.values(name)]).reshape(tensor.shape)
        assert np.array_equal(values, tensor.dequantize())
    parts = LiteRt().layout(contents_of(model), "m.tflite", Split())
    assert [part.size for part in parts] == [path.stat().st_size]
    assert all(item.start % 64 == 0 for item in file.tensors.values())


WITHOUT_EXPERTS = [
    name
    for name, fields in CONFIGS.items()
    if not any(len(tensor.shape) > 2 for tensor in quantized_model(fields, "f32").tensors.values())
]


@pytest.mark.parametrize("family", WITHOUT_EXPERTS)
def test_every_family_can_be_written(family: str, tmp_path: Path) -> None:
    assert written(quantized_model(CONFIGS[family], "int8_channel_narrow"), tmp_path).is_file()


def test_the_code_that_kernels_cannot_multiply_is_refused() -> None:
    model = quantized_model(CONFIGS["llama"], "int8_channel")
    with pytest.raises(ContainerError, match=r"cannot hold INT8_CHANNEL; .* without -128 .INT8_CHANNEL_NARROW"):
        LiteRt().layout(contents_of(model), "m.tflite", Split())
    assert not LiteRt().holds(FORMATS["int8_channel_pow2"])
    assert container_for(Path("m.tflite")).name == "litert"


def test_a_byte_changed_on_its_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = litert.CodesStorage.planes

    def damaged(self, tensor):
        planes = {name: np.array(array) for name, array in honest(self, tensor).items()}
        planes[".codes"].reshape(-1)[5] ^= 1
        return planes

    monkeypatch.setattr(litert.CodesStorage, "planes", damaged)
    with pytest.raises(ContainerError, match=r"tensor 'token_embd\.weight' read back differs"):
        written(quantized_model(CONFIGS["llama"], "int8_channel_narrow"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_tables_are_laid_out_as_flatbuffers_says() -> None:
    # Root at its offset, i32 back to the vtable, the u64 aligned, a text with its length and 0 behind it.
    made = serialize(Table({0: Scalar("u8", 7), 2: Scalar("u64", 9), 3: "ab"}), b"TEST")
    root = int.from_bytes(made[:4], "little")
    vtable = root - int.from_bytes(made[root : root + 4], "little", signed=True)
    places = [int.from_bytes(made[vtable + 4 + 2 * slot :][:2], "little") for slot in range(4)]
    assert made[4:8] == b"TEST"
    assert int.from_bytes(made[vtable : vtable + 2], "little") == 12
    assert (made[root + places[0]], places[1]) == (7, 0)
    assert (root + places[2]) % 8 == 0
    assert int.from_bytes(made[root + places[2] :][:8], "little") == 9
    text = root + places[3] + int.from_bytes(made[root + places[3] :][:4], "little")
    assert made[text : text + 7] == b"\x02\0\0\0ab\0"


def test_random_damage_never_ends_in_anything_but_one_clear_line(tmp_path: Path) -> None:
    path = written(quantized_model({**CONFIGS["llama"], "num_hidden_layers": 1}, "int8_channel_narrow"), tmp_path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, 30_000, 8):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            file = LiteRtFile(path)
            for name in file.weights:
                list(file.values(name))
            file.close()
        except LilliputError:
            pass
