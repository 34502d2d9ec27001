# SPDX-License-Identifier: Apache-2.0
"""LiteRT runs our files of integers alone, every operator within a code of what it means."""

from __future__ import annotations

import math
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from litert_integers import MOVES, Kept, expected_codes, run_reference
from numpy.typing import NDArray
from onnx_models import contents_of, quantized_model
from random_models import RandomModel
from test_litert_runs_our_files import KINDS, MODELS, SCRIPT, TOKENS, expected, litert_python

from lilliput.calibration.output_ranges import output_ranges
from lilliput.containers.container import Contents
from lilliput.containers.litert.integer_container import IntegerLiteRt
from lilliput.containers.litert.model import Model, Operator, TensorType
from lilliput.containers.publish import publish

pytestmark = [pytest.mark.external, pytest.mark.filterwarnings("ignore")]
__all__ = ["litert_python"]
# Codes that an operator may be from its meaning: one, as multipliers of 31 bits and sums of two scaled numbers round on
# their way. Exponentials and roots of 16 bits come from tables: a step of probabilities in 8 bits is 128 of theirs, and
# a root is right to one part in 512 of the largest.
AWAY = defaultdict(lambda: 1, {"RSQRT INT16": 64, "SOFTMAX INT16": 128})
# How far the results may be from those of the float inputs, in their spread. A dozen results a layer are rounded to
# 255 steps of a range of some ten times their root mean square: 1.1 %; in two layers the root of 24 times that, if
# errors are independent and nothing enlarges them. 0.017 to 0.022 were found.
ROUNDED = math.sqrt(24) * 10 / 255 / math.sqrt(12)
# T5 does not scale its scores, and a softmax of random ones is near to choosing: no bound was derived; 0.20 was found.
SPREAD = {"bert": ROUNDED, "roberta": ROUNDED, "bart": ROUNDED, "t5": 0.35}


def integer_contents(model: RandomModel) -> Contents:
    """With ranges of the text that is run, and of four others."""
    generator = np.random.default_rng(5)
    texts = [np.array(TOKENS), *(generator.integers(2, 70, len(TOKENS)) for _ in range(4))]
    return replace(contents_of(model), output_ranges=output_ranges(model, texts))


def executed(
    python: Path, file: Path, kind: str, tokens: Sequence[int] = TOKENS
) -> tuple[NDArray[np.int8], dict[int, Kept]]:
    """The codes of the result, and every tensor as the runtime left it."""
    np.save(file.with_name("ids.npy"), np.array([tokens]))
    names = [file, *(file.with_name(name) for name in ("ids.npy", "out.npy"))]
    command = [str(python), "-I", str(SCRIPT), *map(str, names), kind, str(file.with_name("all.npz"))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    with np.load(file.with_name("all.npz")) as held:
        indices = {int(name.partition(".")[0]) for name in held}
        kept = {
            index: Kept(
                held[f"{index}.codes"], held[f"{index}.scales"], int((held[f"{index}.zero_points"].tolist() or [0])[0])
            )
            for index in indices
        }
    return np.load(file.with_name("out.npy"))[0], kept


@pytest.mark.parametrize("name", SPREAD)
def test_every_operator_gives_the_codes_that_it_means(name: str, litert_python: Path, tmp_path: Path) -> None:
    model = quantized_model(MODELS[name], "int8_channel_narrow")
    contents = integer_contents(model)
    file = tmp_path / "m.int8.tflite"
    publish(IntegerLiteRt(), contents, model.tensors.values(), file)
    found, kept = executed(litert_python, file, "plain")
    graph, _ = IntegerLiteRt().translated(contents, IntegerLiteRt().placed_codes(contents)[0])
    assert floats_of(graph) == []
    away: dict[str, int] = {}
    for operation in graph.operations:
        codes = kept[operation.outputs[0]].codes
        farthest = int(np.abs(expected_codes(graph, operation, kept).astype(np.int64) - codes).max())
        label = f"{operation.operator.name} {graph.tensors[operation.outputs[0]].type.name}"
        away[label] = max(away.get(label, 0), farthest)
    print(name, away)
    for label, farthest in away.items():
        assert farthest <= (0 if Operator[label.split()[0]] in MOVES else AWAY[label]), label
    mask = np.ones((1, len(TOKENS)), np.int8)
    inputs = {"input_ids": np.array([TOKENS]), "attention_mask": mask, "token_type_ids": 0 * mask.astype(np.int32)}
    ours = run_reference(graph, kept, inputs)[0]
    step = float(kept[graph.outputs[0]].scales[0])
    right = expected(model, np.float64)
    values = kept[graph.outputs[0]].values[0]
    print(
        f"{name}: {np.abs(ours.astype(int) - found).max()} codes from our integer reference at most, "
        f"{np.abs(values - right).max() / step:.0f} from floats"
    )
    assert np.sqrt(np.mean((ours.astype(int) - found) ** 2.0)) * step < SPREAD[name] * right.std()


def floats_of(graph: Model) -> list[str]:
    """Tensors that are floats."""
    return [item.name for item in graph.tensors if item.type is TensorType.FLOAT32]


@KINDS
@pytest.mark.parametrize("name", SPREAD)
def test_whole_models_are_near_their_floats(name: str, kind: str, litert_python: Path, tmp_path: Path) -> None:
    model = quantized_model(MODELS[name], "int8_channel_narrow")
    file = tmp_path / "m.int8.tflite"
    publish(IntegerLiteRt(), integer_contents(model), model.tensors.values(), file)
    found, kept = executed(litert_python, file, kind)
    (out,) = (item for item in kept.values() if item.codes.shape == (1, *found.shape) and item.codes.dtype == np.int8)
    right = expected(model, np.float64)
    missed = np.sqrt(np.mean((out.values[0] - right) ** 2)) / right.std()
    print(f"{name}, {kind}: {missed:.3f} of the spread")
    assert 0.0 < missed < SPREAD[name]
