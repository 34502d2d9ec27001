# SPDX-License-Identifier: Apache-2.0
"""The safetensors files of a Hugging Face folder, one or many, as one table of tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from lilliput.checkpoints.safetensors_reader import SafetensorsFile
from lilliput.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# AutoGPTQ's name of 2023, with bits and group size.
OLD_GPTQ = "gptq_model*.safetensors"
PICKLED_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
# A plain file name in the folder itself.
_SHARD_NAME = re.compile(r"[\w+-][\w.+-]*\.safetensors")
# An index of a trillion-parameter model is a few MB.
MAX_JSON_BYTES = 1 << 28


def open_shards(folder: Path) -> Mapping[str, SafetensorsFile]:
    """Tensor name -> the open file that holds it.

    Raises CheckpointError: no weights, only pickled weights, a missing shard, a shard outside the folder, a tensor that
    the index promises and no shard holds, a tensor in two shards.
    """
    if (folder / INDEX).is_file():
        return _open_indexed(folder)
    if (folder / SINGLE).is_file():
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file.tensors, file)
    own = sorted(folder.glob(OLD_GPTQ))
    if len(own) == 1:
        file = SafetensorsFile(own[0])
        return dict.fromkeys(file.tensors, file)
    raise CheckpointError(_why_no_weights(folder))


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises CheckpointError naming the file."""
    found = read_json_value(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name}: expected a JSON object, found {type(found).__name__}")
    return found


def read_json_value(path: Path) -> object:
    """Whatever JSON a file holds. Raises CheckpointError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path.name}: {path.stat().st_size} bytes is too large for a JSON description")
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise CheckpointError(f"{path}: cannot be read: {failure.strerror or failure}") from failure
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"{path.name}: not valid JSON: {failure}") from failure
    return found


def _open_indexed(folder: Path) -> Mapping[str, SafetensorsFile]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX}: no 'weight_map' from tensors to files")
    names: dict[str, None] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{INDEX}: tensor '{tensor}' points to {shard!r}, which leaves the model folder; refused"
            )
        names[shard] = None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder.name}: {len(missing)} of {len(names)} shards missing: {', '.join(missing[:3])}"
            f"{' …' if len(missing) > 3 else ''}; download them again"
        )
    return _merge(folder, list(names), weight_map)


def _merge(folder: Path, names: list[str], weight_map: dict[str, object]) -> Mapping[str, SafetensorsFile]:
    table: dict[str, SafetensorsFile] = {}
    for name in names:
        file = SafetensorsFile(folder / name)
        for tensor in file.tensors:
            if tensor in table:
                raise CheckpointError(f"tensor '{tensor}' is in two shards: {table[tensor].path.name} and {name}")
            table[tensor] = file
    for tensor, shard in weight_map.items():
        if tensor not in table or table[tensor].path.name != shard:
            raise CheckpointError(f"{shard}: tensor '{tensor}' is promised by {INDEX} but not in it")
    return table


def _why_no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED_SUFFIXES and path.is_file())
    if pickled:
        return (
            f"{folder.name}: weights are pickled ({pickled[0]}); unpickling runs code from the file, so it is refused; "
            "convert them to safetensors first (model.save_pretrained(folder, safe_serialization=True))"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{folder.name}: found {others[0]} but neither {SINGLE} nor {INDEX}; rename it or restore the index"
    return f"{folder.name}: no {SINGLE} and no {INDEX} in this folder; is it a model folder?"
