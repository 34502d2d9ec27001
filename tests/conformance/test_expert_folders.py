# SPDX-License-Identifier: Apache-2.0
"""Experts, one tensor here, lie as a matrix each in folders: read back bit for bit, refused where nobody reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_files import CONFIG, VOCABULARY, random_tensor
from safetensors.numpy import load_file

from lilliput.architectures import mixtral
from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import Provenance
from lilliput.containers import open_model
from lilliput.containers.awq import Awq
from lilliput.containers.bitsandbytes import BitsAndBytes
from lilliput.containers.checkpoint_folder import CheckpointFolder
from lilliput.containers.compressed_tensors import CompressedTensors
from lilliput.containers.container import Contents, Split
from lilliput.containers.gptq import Gptq
from lilliput.containers.publish import publish
from lilliput.errors import ContainerError
from lilliput.formats import get_format
from lilliput.records import QuantizedTensor, Role, TensorHeader

FIELDS: dict[str, Json] = {
    **CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
MODULE = "model.layers.0.block_sparse_moe.experts"
NAME = "blk.0.ffn_down_exps.weight"
FLOATS = (Role.TOKEN_EMBEDDING, Role.OUTPUT, Role.ROUTER)


def mixture(kind: str, experts: str | None = None) -> tuple[Contents, dict[str, QuantizedTensor]]:
    """Layers in one format, experts in another or the same; embedding, head and router in F32."""
    config = mixtral.config_from_huggingface(FIELDS)
    tensors: dict[str, QuantizedTensor] = {}
    for seed, entry in enumerate(mixtral.tensor_table(config)):
        is_float = len(entry.shape) < 2 or entry.role in FLOATS
        name = "f32" if is_float else experts if experts and len(entry.shape) > 2 else kind
        tensors[entry.name] = random_tensor(entry.name, entry.shape, get_format(name), seed)
    headers = tuple(TensorHeader(tensor.name, tensor.shape, tensor.format) for tensor in tensors.values())
    return Contents(mixtral, config, VOCABULARY, Provenance(huggingface_config=FIELDS), headers), tensors


@pytest.mark.parametrize(
    ("container", "kind", "experts"),
    [
        (CompressedTensors(), "int4_g32", None), (CompressedTensors(), "int8_channel", "f16"),
        (CompressedTensors(), "int4_g32_asym", "int3_g32"), (CompressedTensors(), "fp8_e4m3_channel", "mxfp4"),
        (Gptq(), "int4_g32", None), (Gptq(), "int8_g32_asym", None), (Gptq(), "int4_channel", "f32"),
        (Awq(), "int4_g32_asym", None), (BitsAndBytes(), "nf4", "f32"),
    ],
    ids=lambda item: getattr(item, "name", item),
)  # fmt: skip
def test_experts_are_read_back_bit_for_bit(
    container: CheckpointFolder, kind: str, experts: str | None, tmp_path: Path
) -> None:
    contents, tensors = mixture(kind, experts)
    target = tmp_path / f"m{container.suffix}"
    parts = container.layout(contents, target.name, Split())
    publish(container, contents, tensors.values(), target)
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in target.iterdir())
    found = open_model(target)
    for name, tensor in tensors.items():
        again = found.tensor(name)
        assert (again.shape, again.format.name) == (tensor.shape, tensor.format.name), name
        planes = {plane: np.asarray(array).tobytes() for plane, array in again.planes.items()}
        assert planes == {plane: np.asarray(array).tobytes() for plane, array in tensor.planes.items()}, name


def test_each_expert_has_the_names_that_its_checkpoint_has(tmp_path: Path) -> None:
    contents, _ = mixture("int4_g32")
    target = tmp_path / "m.compressed-tensors"
    publish(CompressedTensors(), contents, mixture("int4_g32")[1].values(), target)
    stored = load_file(target / "model.safetensors")
    assert {f"{MODULE}.{n}.{part}.weight_packed" for n in range(4) for part in ("w1", "w2", "w3")} <= set(stored)
    assert stored[f"{MODULE}.3.w2.weight_packed"].shape == (64, 12)
    assert stored[f"{MODULE}.3.w2.weight_shape"].tolist() == [64, 96]
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.block_sparse_moe.gate" in config["ignore"]
    assert not any("experts" in module for module in config["ignore"])


def test_experts_left_in_floats_are_named_to_readers() -> None:
    contents, _ = mixture("int4_g32", "f32")
    config = json.loads(CompressedTensors()._config(contents))["quantization_config"]
    assert {f"{MODULE}.{n}.w1" for n in range(4)} <= set(config["ignore"])


@pytest.mark.parametrize(
    ("container", "kind", "message"),
    [
        (
            BitsAndBytes(),
            "int8_channel",
            "readers of bitsandbytes have no experts in INT8_CHANNEL; keep them in BF16, or give -o",
        ),
        (CompressedTensors(), "int8_tensor", "INT8_TENSOR shares a parameter between experts"),
        (Gptq(), "int4_g32_ordered", "INT4_G32_ORDERED shares a parameter between experts"),
    ],
    ids=lambda item: getattr(item, "name", item),
)
def test_what_experts_cannot_be_is_refused_before_any_work(
    container: CheckpointFolder, kind: str, message: str
) -> None:
    with pytest.raises(ContainerError, match=message):
        container.layout(mixture(kind)[0], "m", Split())
