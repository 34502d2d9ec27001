# SPDX-License-Identifier: Apache-2.0
"""One random model in the file that each runtime reads, all written by lilliput."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import random_model

from lilliput import workflows
from lilliput.recipes.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    import onnx

CHECKPOINT = "BF16"
FAST = workflows.QuantizeOptions(method="round_to_nearest", force=True)


def write(files: Sequence[str], folder: Path, shape: random_model.Shape) -> None:
    """Write those files that the folder lacks. file: FORMAT.gguf, .safetensors or .onnx, or the checkpoint."""
    checkpoint = folder / CHECKPOINT
    if not (checkpoint / "tokenizer.json").is_file():
        random_model.write_folder(checkpoint, shape)
    for file in sorted({*files} - {CHECKPOINT}):
        target = folder / file
        if target.exists():
            continue
        print(f"writing {file}", file=sys.stderr)
        unfinished = folder / f"unfinished-{file}"
        workflows.quantize(checkpoint, _format(file), unfinished, options=FAST)
        if target.suffix == ".onnx":
            _set_up_for_genai(unfinished / "model.onnx")
        unfinished.rename(target)


def _format(file: str) -> str | Recipe:
    """Q4_0 for every matrix, as the integers in groups of 32 that ONNX Runtime reads; other presets are llama.cpp's."""
    name = file.partition(".")[0]
    return parse_recipe("name: Q4_0\nrules:\n  - {match: '*', format: Q4_0}\n", file) if name == "Q4_0" else name


def _set_up_for_genai(path: Path) -> None:
    """Inputs of products in int8, and the head on the last token alone; for batches of one."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 4
    _keep_last_token(model)
    onnx.save(model, path)


def _keep_last_token(model: onnx.ModelProto) -> None:
    """Give logits [1, 1, vocabulary]: a Slice stands before the head."""
    from onnx import helper, numpy_helper

    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    reshape = makers[makers["logits"].input[0]]
    head = makers[reshape.input[0]]
    if (reshape.op_type, head.op_type) != ("Reshape", "MatMulNBits"):
        raise SystemExit(f"the graph ends in {head.op_type} and {reshape.op_type}, not in MatMulNBits and Reshape")
    constants = {"last_start": [-1], "last_end": [2**62], "last_axis": [0], "last_shape": [1, 1, -1]}
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    last = helper.make_node("Slice", [head.input[0], "last_start", "last_end", "last_axis"], ["last_token"])
    head.input[0], reshape.input[1] = "last_token", "last_shape"
    graph.node.insert(list(graph.node).index(head), last)
    logits = next(output for output in graph.output if output.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_value = 1
