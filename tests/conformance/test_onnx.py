# SPDX-License-Identifier: Apache-2.0
"""ONNX folders: ONNX Runtime computes what our own decoding of the weights says, prefill and token by token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import Runner, contents_of, expected_and_bound, quantized_model, write
from random_models import CONFIGS, RandomModel
from reference_program import encoded_tensor, float_tensor

from lilliput.architectures import program as operations
from lilliput.architectures.architecture import Json
from lilliput.containers import open_model
from lilliput.containers.container import Split
from lilliput.containers.inspection import inspect
from lilliput.containers.onnx import weights
from lilliput.containers.onnx.container import Onnx
from lilliput.containers.onnx.operations import check_known
from lilliput.containers.onnx.reader import OnnxFile
from lilliput.errors import ContainerError, LilliputError, UnsupportedModelError
from lilliput.formats import FORMATS, NumberFormat

pytestmark = pytest.mark.filterwarnings("ignore")
onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
TOKENS = [3, 17, 0, 42, 42, 9, 60, 8, 1, 33, 2, 55]
LLAMA: dict[str, Json] = {"model_type": "llama"}
SMALL: dict[str, Json] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 1}
# Beside the families: what changes positions and masks.
POSITIONS: dict[str, dict[str, Json]] = {
    "window": {"model_type": "mistral", "sliding_window": 5},
    "yarn": {"model_type": "qwen2", "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama3": {**LLAMA, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}},
    "linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}  # fmt: skip
KINDS = [item for item in FORMATS.values() if Onnx().holds(item) and item.can_encode]


class Standard(Onnx):
    """The same with attention out of standard operators."""

    attention = "standard"


CONTAINERS = pytest.mark.parametrize("container", [Onnx(), Standard()], ids=["grouped", "standard"])


def assert_computes(path: Path, model: RandomModel, padding: int = 0) -> None:
    expected, bound = expected_and_bound(model, TOKENS)
    runner = Runner(path)
    split = len(TOKENS) - 3
    found = [runner.forward(TOKENS[:split], padding)]
    if not padding:
        found += [runner.forward([token]) for token in TOKENS[split:]]
    found = np.concatenate(found)
    assert np.abs(found - expected[: len(found)]).max() <= bound


@CONTAINERS
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_computes_the_same_as_its_program(family: str, container: Onnx, tmp_path: Path) -> None:
    model = quantized_model(CONFIGS[family], "int4_g32")
    assert_computes(write(model, tmp_path / "m.onnx", container), model)


@CONTAINERS
@pytest.mark.parametrize("name", POSITIONS)
def test_windows_and_scaled_positions_are_those_of_the_program(name: str, container: Onnx, tmp_path: Path) -> None:
    model = quantized_model(POSITIONS[name], "f32")
    assert_computes(write(model, tmp_path / "m.onnx", container), model)


@pytest.mark.parametrize("number_format", KINDS, ids=lambda item: item.name)
def test_every_format_that_is_held_computes_our_decoded_values(number_format: NumberFormat, tmp_path: Path) -> None:
    model = quantized_model({**LLAMA, **SMALL}, number_format.name)
    assert_computes(write(model, tmp_path / "m.onnx"), model)


ENCODERS: dict[str, dict[str, Json]] = {
    "bert": {"model_type": "bert"},
    "roberta": {"model_type": "roberta", "type_vocab_size": 1, "max_position_embeddings": 66, "pad_token_id": 1},
    "cls": {"model_type": "bert", "sentence_transformers": {
        "Transformer": {}, "Pooling": {"pooling_mode_cls_token": True}, "Normalize": {}}},
    "classes": {"model_type": "bert", "architectures": ["BertForSequenceClassification"],
                "id2label": {"0": "bad", "1": "fair", "2": "good"}},
    "tags": {"model_type": "bert", "architectures": ["BertForTokenClassification"],
             "id2label": {"0": "bad", "1": "fair", "2": "good"}},
    "spans": {"model_type": "bert", "architectures": ["BertForQuestionAnswering"]},
    "masked": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
}  # fmt: skip


@CONTAINERS
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_compute_the_same_as_their_programs(name: str, container: Onnx, tmp_path: Path) -> None:
    model = quantized_model(ENCODERS[name], "int8_g32")
    session = Runner(write(model, tmp_path / "m.onnx", container)).session
    assert not (tmp_path / "m.onnx" / "genai_config.json").exists()
    # A short sequence beside a long one: what pads it must not be seen.
    short = TOKENS[:5]
    feed = {
        "input_ids": np.array([TOKENS, short + [0] * 7], np.int64),
        "attention_mask": np.array([[1] * 12, [1] * 5 + [0] * 7], np.int64),
        "token_type_ids": np.zeros((2, 12), np.int64),
    }
    names = [item.name for item in session.get_outputs()]
    inputs = {item.name for item in session.get_inputs()}
    found = dict(zip(names, session.run(names, {key: feed[key] for key in inputs}), strict=True))
    traits = model.config.encoder
    for index, tokens in enumerate((TOKENS, short)):
        expected, bound = expected_and_bound(model, tokens)
        if traits.head != "text":
            # Few labels miss by chance less than the roundings of the head's own sums of 96 terms.
            rounding = 96 * 2.0**-24 * np.abs(expected).max()
            assert np.abs(found["logits"][index, : len(tokens)] - expected).max() <= max(bound, rounding)
            continue
        if traits.labels:
            assert np.abs(found["logits"][index] - expected[0]).max() <= bound
            continue
        assert np.abs(found["last_hidden_state"][index, : len(tokens)] - expected).max() <= bound
        vector = expected[0] if traits.pooling == "cls" else expected.mean(axis=0)
        if traits.is_normalized:
            length = np.linalg.norm(vector)
            # Each of the numbers may be off by the bound, and so may the length by a root of as many.
            vector, bound = vector / length, bound * (1 + np.sqrt(vector.size)) / length
        assert np.abs(found["sentence_embedding"][index] - vector).max() <= bound


def test_padding_on_the_left_is_not_looked_at(tmp_path: Path) -> None:
    model = quantized_model(LLAMA, "f32")
    assert_computes(write(model, tmp_path / "m.onnx", Standard()), model, padding=3)


@dataclass(frozen=True)
class Toy:
    """An architecture of one program."""

    made: operations.Program

    def program(self, config: object) -> operations.Program:
        return self.made


def toy(body: tuple[operations.Operation, ...], buffers: dict[str, int], vectors: dict[str, int]) -> RandomModel:
    """A model of an embedding, a body that ends in buffer "y" [64], and an output head. vectors: name -> length."""
    model = quantized_model({**LLAMA, "hidden_size": 64}, "int4_g32")
    generator = np.random.default_rng(1)
    tensors = {name: model.tensors[name] for name in ("token_embd.weight", "output.weight")}
    for name, size in vectors.items():
        tensors[name] = float_tensor(name, generator.normal(1.0, 0.3, size).astype(np.float32))
    tensors["qkv"] = encoded_tensor("qkv", generator.normal(0, 0.2, (192, 64)).astype(np.float32), "int4_g32_asym")
    tensors["table"] = encoded_tensor("table", generator.normal(0, 1, (64, 64)).astype(np.float32), "int8_g64")
    tensors["bias"] = float_tensor("bias", generator.normal(0, 2, (8, 2)).astype(np.float32))
    read = {getattr(item, "weight", None) for item in body} | {getattr(item, "bias", None) for item in body}
    read |= {"bias"} if any(isinstance(item, operations.RelativeBias) for item in read) else set()
    tensors = {name: tensor for name, tensor in tensors.items() if name in read or ".weight" in name}
    program = operations.Program(
        {"x": 64, "y": 64, "logits": 70, **buffers}, (),
        (operations.Embed("x", "token_embd.weight"), *body, operations.Linear("logits", "y", "output.weight")),
        "logits",
    )  # fmt: skip
    return replace(model, architecture=Toy(program), tensors=tensors)  # type: ignore[arg-type]


BODIES: dict[str, tuple[tuple[operations.Operation, ...], dict[str, int], dict[str, int]]] = {
    "layer norm": ((operations.LayerNorm("y", "x", "w", "b", 1e-5),), {}, {"w": 64, "b": 64}),
    "layer norm without a bias": ((operations.LayerNorm("y", "x", "w", None, 1e-5),), {}, {"w": 64}),
    "positions": (
        (operations.Embed("p", "table", by="position", offset=2), operations.Add("y", "x", "p")), {"p": 64}, {},
    ),
    "rows of a fused weight": (
        (
            operations.Linear("a", "x", "qkv", "b", rows=(0, 64)),
            operations.Linear("c", "x", "qkv", "b", rows=(64, 128)),
            operations.Linear("d", "x", "qkv", "b", rows=(128, 192)),
            operations.Glu("e", "a", "c", "silu"),
            operations.Add("y", "e", "d"),
        ),
        {"a": 64, "c": 64, "d": 64, "e": 64}, {"b": 192},
    ),
    "relative bias in both directions": (
        (operations.Attention("y", "x", "x", "x", 0, 2, 2, 32, 0.5, causal=False, bias=operations.RelativeBias(
            "bias", 8, 5, bidirectional=True)),), {}, {},
    ),
    "scale and softcap": ((operations.Scale("a", "x", 0.5), operations.Softcap("y", "a", 0.7)), {"a": 64}, {}),
    **{
        name: ((operations.Activate("y", "x", name),), {}, {})
        for name in ("silu", "gelu", "gelu_tanh", "relu", "tanh")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_operations_of_other_families_mean_what_the_program_says(name: str, tmp_path: Path) -> None:
    model = toy(*BODIES[name])
    expected, bound = expected_and_bound(model, TOKENS)
    found = Runner(write(model, tmp_path / "m.onnx")).forward(TOKENS)
    assert np.abs(found - expected).max() <= bound


@dataclass(frozen=True)
class Wavelet:
    out: str


@dataclass(frozen=True)
class Later(operations.Scale):
    power: int = 1


def test_an_operation_without_a_translation_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="no translation of the operation Wavelet"):
        check_known(Wavelet("x"))  # type: ignore[arg-type]


def test_a_field_that_came_later_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from lilliput.containers.onnx import operations as translations

    fields = {**translations._FIELDS, Later: translations._FIELDS[operations.Scale]}
    monkeypatch.setattr(translations, "_FIELDS", fields)
    check_known(Later("x", "y", 2.0))
    with pytest.raises(UnsupportedModelError, match=r"Later\.power = 3"):
        check_known(Later("x", "y", 2.0, 3))


@CONTAINERS
def test_the_file_is_what_the_onnx_project_calls_valid(container: Onnx, tmp_path: Path) -> None:
    path = write(quantized_model(LLAMA, "int4_g32"), tmp_path / "m.onnx", container)
    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    assert model.ir_version == 10
    assert {item.domain: item.version for item in model.opset_import} == {"": 21, "com.microsoft": 1}
    names = [item.name for item in model.graph.input]
    assert names[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]


def test_weights_start_on_pages_and_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = quantized_model({**LLAMA, "tie_word_embeddings": True, "vocab_size": 4096}, "int4_g32")
    path = write(model, tmp_path / "m.onnx")
    graph = OnnxFile(path).graph
    places = {name: item.data for name, item in graph.initializers.items() if not isinstance(item.data, bytes)}
    assert all(place.start % (4096 if place.nbytes >= 65536 else 64) == 0 for place in places.values())
    shared = [name for name in places if name.startswith("token_embd.weight.codes")]
    assert len(shared) == 2
    assert len({places[name].start for name in shared}) == 1
    stored = sum(tensor.nbytes for tensor in model.tensors.values())
    assert (tmp_path / "m.onnx" / "model.onnx.data").stat().st_size < stored + 4096 * len(model.tensors)


def test_the_size_of_every_file_is_known_before_the_work(tmp_path: Path) -> None:
    model = quantized_model(LLAMA, "int4_g32_asym")
    parts = Onnx().layout(contents_of(model), "m.onnx", Split())
    write(model, tmp_path / "m.onnx")
    for part in parts:
        assert (tmp_path / part.file_name).stat().st_size == part.size
    assert {Path(part.file_name).name for part in parts} == {"model.onnx", "model.onnx.data", "genai_config.json"}


def test_a_format_that_cannot_be_held_is_refused_before_the_work_with_what_can() -> None:
    model = quantized_model({**LLAMA, **SMALL}, "q4_k")
    with pytest.raises(ContainerError, match=r"'token_embd.weight': an ONNX file cannot hold Q4_K; it holds integers"):
        Onnx().layout(contents_of(model), "m.onnx", Split())
    model = quantized_model({**LLAMA, "hidden_size": 100, "num_attention_heads": 2}, "int8_channel")
    with pytest.raises(ContainerError, match="rows of 100 weights in INT8_CHANNEL do not divide into blocks of 16"):
        Onnx().layout(contents_of(model), "m.onnx", Split())
    with pytest.raises(ContainerError, match="leave --split-max-size out"):
        Onnx().layout(contents_of(model), "m.onnx", Split(max_bytes=1))


def test_a_tensor_that_no_operation_reads_is_not_dropped_in_silence() -> None:
    model = quantized_model(LLAMA, "int4_g32")
    more = {**model.tensors, "blk.0.extra.weight": float_tensor("blk.0.extra.weight", np.ones((4, 32), np.float32))}
    with pytest.raises(ContainerError, match=r"'blk.0.extra.weight': this model's program does not read it"):
        Onnx().layout(contents_of(replace(model, tensors=more)), "m.onnx", Split())


def test_a_byte_changed_on_its_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = weights.BlockStorage.planes

    def damaged(self, tensor):
        planes = honest(self, tensor)
        planes[".codes"].reshape(-1)[5] ^= 1
        return planes

    monkeypatch.setattr(weights.BlockStorage, "planes", damaged)
    with pytest.raises(ContainerError, match=r"tensor 'token_embd\.weight' read back differs"):
        write(quantized_model(LLAMA, "int4_g32"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_inspecting_shows_metadata_and_weights(tmp_path: Path) -> None:
    model = quantized_model(LLAMA, "int4_g32_asym")
    contents = replace(contents_of(model), metadata={"lilliput.recipe": "mine", "lilliput.count": 3})
    from lilliput.containers.publish import publish

    publish(Onnx(), contents, model.tensors.values(), tmp_path / "m.onnx")
    for path in (tmp_path / "m.onnx", tmp_path / "m.onnx" / "model.onnx"):
        found = inspect(path)
        assert found.metadata == {"lilliput.recipe": "mine", "lilliput.count": "3"}
        shown = {item.name: (item.shape, item.format) for item in found.tensors}
        assert set(shown) == set(model.tensors)
        assert shown["blk.0.ffn_down.weight"] == ((96, 160), "int4, blocks of 32 with zero points")
        assert shown["output_norm.weight"] == ((96,), "float")
    # Of a folder without config.json nobody knows what model it is.
    with pytest.raises(LilliputError, match=r"put the model's config\.json beside it"):
        open_model(tmp_path / "m.onnx")


def test_genai_config_names_what_the_graph_has(tmp_path: Path) -> None:
    path = write(quantized_model(LLAMA, "int4_g32"), tmp_path / "m.onnx")
    config = json.loads((path.parent / "genai_config.json").read_text())["model"]
    graph = OnnxFile(path).graph
    inputs = {port.name for port in graph.inputs}
    decoder = config["decoder"]
    expected = {decoder["inputs"][name] for name in ("input_ids", "attention_mask", "position_ids")}
    for layer in range(decoder["num_hidden_layers"]):
        expected |= {decoder["inputs"][f"past_{kind}_names"] % layer for kind in ("key", "value")}
    assert inputs == expected
    assert next(port.name for port in graph.outputs) == decoder["outputs"]["logits"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_byte(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + bytes([value]) + content[place + 1 :]


@pytest.mark.parametrize(
    "change", [cut, lambda content: b"", lambda content: b"\xff" * 40, with_byte(0, 0x0F), with_byte(12, 0xFF)]
)
def test_damaged_files_give_one_clear_line(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(quantized_model(LLAMA, "int4_g32"), tmp_path / "m.onnx")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ContainerError, match=r"^model\.onnx: .*ONNX"):
        inspect(path)


def test_random_damage_never_ends_in_anything_but_one_clear_line(tmp_path: Path) -> None:
    path = write(quantized_model({**LLAMA, "num_hidden_layers": 1}, "int4_g32"), tmp_path / "m.onnx")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            file = OnnxFile(path)
            for name in file.weights:
                file.value_digest(name)
            file.close()
        except LilliputError:
            pass


def test_weights_that_lie_outside_the_folder_are_not_opened(tmp_path: Path) -> None:
    path = write(quantized_model(LLAMA, "int4_g32"), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"model.onnx.data", b"../model.onnx.d"))
    with pytest.raises(ContainerError, match="only files beside the model are opened"):
        OnnxFile(path)
