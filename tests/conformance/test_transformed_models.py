# SPDX-License-Identifier: Apache-2.0
"""Every transform on every family: the float model says what it said before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from random_models import CONFIGS, RandomModel, exact_logits, random_model

from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import UnsupportedModelError
from lilliput.formats import get_format
from lilliput.pipeline.transform_model import decided, outlined
from lilliput.recipes.plan import Plan
from lilliput.records import InputStatistics, Role, Statistics, TensorPlan
from lilliput.runtime.session import EngineOptions, Session
from lilliput.transforms import TRANSFORMS, parse_transform

# Half the distance between neighbouring float32 numbers near 1.
ROUNDING = 2.0**-24
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 70, 12)]
STACKS = [
    *([name] for name in TRANSFORMS),
    ["awq_scaling:1", "smooth_quant:0.8"],
    ["untie", "smooth_quant", "residual_rotation", "value_rotation", "awq_scaling:0.5"],
]


def invented_statistics(source: ModelSource) -> Statistics:
    """Inputs whose magnitudes span two orders, for every matrix that reads some; shared where the input is."""
    groups: dict[str | None, InputStatistics] = {}
    inputs = {}
    for number, entry in enumerate(source.architecture.tensor_table(source.config)):
        if entry.input_group is None:
            continue
        width = entry.shape[-1]
        magnitudes = np.exp(np.random.default_rng(number).uniform(-2.3, 2.3, width))
        own = InputStatistics(10, 10 * magnitudes**2, (3 * magnitudes).astype(np.float32))
        inputs[entry.tied_to or entry.name] = groups.setdefault(entry.input_group, own)
    return Statistics(inputs, 1, 10, ("text",), source.fingerprint())


def q4_0_plan(source: ModelSource) -> Plan:
    rows = []
    for header in source.headers.values():
        is_matrix = len(header.shape) == 2
        number_format = get_format("q4_0" if is_matrix else "f32")
        method = "searched_scales" if is_matrix else "copy"
        rows.append(TensorPlan(header.name, header.name, header.shape, Role.OTHER, number_format, method, "test"))
    return Plan("test", "random", tuple(rows))


def rewritten(model: RandomModel, words: Sequence[str]) -> ModelSource:
    source = outlined(model, [parse_transform(word) for word in words])
    return decided(source, q4_0_plan(source), invented_statistics(model), invented_statistics, threads=1).source


def bound(source: ModelSource, transforms: int) -> float:
    """Relative to the largest logit: how far rounding the rewritten weights to float32 may move it.

    Every rewrite rounds a weight, and the factors it is made of, to half a unit in the last place: each of at most four
    roundings a transform changes a term of a dot product by 2^-24 of itself. Terms exceed their sum by about sqrt(n),
    their roundings' random signs take sqrt(n) back; the products along a logit err independently of each other.
    """
    products = 7 * source.config.layers + 1
    return 4 * transforms * products**0.5 * ROUNDING


def refusal(model: RandomModel, words: Sequence[str]) -> str | None:
    """What a family has that one of the transforms would not survive, as its error says it."""
    names = [entry.name for entry in model.architecture.tensor_table(model.config)]
    if "residual_rotation" in words and "blk.0.attn_norm.bias" in names:
        return "operation LayerNorm reads the residual stream|Attention reads"
    if "residual_rotation" in words and "blk.0.attn_norm.weight" not in names:
        return "operation Linear reads the residual stream itself"
    if "residual_rotation" in words and "blk.0.post_attention_norm.weight" in names:
        return "operation RmsNorm writes to the residual stream"
    if "residual_rotation" in words and "blk.0.ffn_gate_inp.weight" in names:
        return "operation Linear reads the residual|Experts"
    if "value_rotation" in words and "blk.0.attn_qkv.weight" in names:
        return "values are not made by a linear layer of their own"
    return None


@pytest.mark.parametrize("words", STACKS, ids=" ".join)
@pytest.mark.parametrize("name", CONFIGS)
def test_float_logits_are_unchanged(name: str, words: list[str]) -> None:
    model = random_model(CONFIGS[name])
    if not model.config.tied:
        words = [word for word in words if word != "untie"]
        if not words:
            pytest.skip("the head has bytes of its own")
    elif "residual_rotation" in words and "untie" not in words:
        pytest.skip("refused for a tied head, as another test holds")
    if (reason := refusal(model, words)) is not None:
        with pytest.raises(UnsupportedModelError, match=reason):
            rewritten(model, words)
        return
    before = exact_logits(model, TOKENS)
    source = rewritten(model, words)
    largest = float(np.abs(before).max())
    assert np.abs(exact_logits(source, TOKENS) - before).max() <= bound(model, len(words)) * largest
    changed = [name for name in source.headers if name not in model.headers or not same(model, source, name)]
    assert changed, "nothing was rewritten"


def same(model: ModelSource, source: ModelSource, name: str) -> bool:
    return np.array_equal(model.tensor(name).dequantize(), source.tensor(name).dequantize())


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_engine_runs_a_rewritten_model_to_the_same_logits(name: str) -> None:
    model = random_model(CONFIGS[name])
    exact = exact_logits(model, TOKENS)
    options = EngineOptions(threads=1, activations="f32", kv_format="f32")

    def logits(source: ModelSource) -> np.ndarray:
        return Session(source, options).forward(TOKENS, "all")

    words = ["smooth_quant", "residual_rotation", "value_rotation"]
    before, after = (np.abs(logits(source) - exact).max() for source in (model, rewritten(model, words)))
    # Float32 arithmetic errs as much on the original.
    assert after <= 4 * before + bound(model, len(words)) * np.abs(exact).max()


TIED = [
    name
    for name, model in ((name, random_model(CONFIGS[name])) for name in CONFIGS)
    if model.config.tied and refusal(model, ["residual_rotation"]) is None
]


@pytest.mark.parametrize("name", TIED)
def test_rotating_the_residual_stream_under_a_tied_head_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"residual_rotation: output_norm.*tied.*untie"):
        outlined(random_model(CONFIGS[name]), [parse_transform("residual_rotation")])


def test_a_rewritten_model_has_another_fingerprint_for_other_strengths() -> None:
    model = random_model(CONFIGS["llama"])
    words = (["smooth_quant:0.4"], ["smooth_quant:0.6"], ["residual_rotation"], ["value_rotation"])
    found = {rewritten(model, word).fingerprint() for word in words}
    assert len(found) == len(words)
    assert model.fingerprint() not in found
    assert rewritten(model, words[0]).fingerprint() in found


def test_statistics_of_the_original_are_carried_over_where_inputs_were_only_scaled() -> None:
    model = random_model(CONFIGS["llama"])
    source = outlined(model, [parse_transform("smooth_quant")])
    before = invented_statistics(model)
    result = decided(source, q4_0_plan(source), before, invented_statistics, threads=1)
    assert result.statistics is not None
    name = "blk.0.ffn_down.weight"
    # What leaves the layer keeps its energy: weights grew as their inputs shrank.
    for statistics, tensor in ((before, model.tensor(name)), (result.statistics, result.source.tensor(name))):
        energy = np.square(tensor.dequantize()) @ statistics.inputs[name].input_mean_square
        if statistics is before:
            wanted = energy
    np.testing.assert_allclose(energy, wanted, rtol=1e-5)
    assert not np.allclose(result.statistics.inputs[name].absmax, before.inputs[name].absmax)
    assert result.statistics.model == result.source.fingerprint()
