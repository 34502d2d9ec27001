# SPDX-License-Identifier: Apache-2.0
"""What transforms are for, on inputs and weights made to need them; and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from random_models import CONFIGS, RandomModel, random_model, with_tensor

from lilliput.architectures.foldable_edges import foldable_edges, residual_stream
from lilliput.architectures.program import (
    Add,
    Attention,
    Glu,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    SelectOutputRows,
)
from lilliput.checkpoints.model_source import ModelSource
from lilliput.errors import CalibrationError, RecipeError, UnsupportedModelError
from lilliput.formats import get_format
from lilliput.methods import METHODS
from lilliput.pipeline.transform_model import check_guidance, decided, outlined, transform_plans
from lilliput.recipes.plan import Plan
from lilliput.records import InputStatistics, LayerInputs, Role, Statistics, TensorPlan
from lilliput.transforms import TRANSFORMS, parse_transform
from lilliput.transforms.rotation import Rotation

OUTLIERS = (5, 40)
READERS = ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return random_model({**CONFIGS["llama"], "num_hidden_layers": 1})


def plan_of(source: ModelSource, method: str) -> Plan:
    """Every matrix in one group of 4-bit integers a row: nothing but the transform can tell its columns apart."""
    number_format = get_format("int4_channel")
    return Plan(
        "test", "random",
        tuple(
            TensorPlan(header.name, header.name, header.shape, Role.OTHER, number_format, method, "test")
            for header in source.headers.values()
            if len(header.shape) == 2
        ),
    )  # fmt: skip


def statistics_with_outliers(source: ModelSource) -> Statistics:
    """Two input channels of every layer are 30 times larger than the others."""
    inputs = {}
    for entry in source.architecture.tensor_table(source.config):
        if entry.input_group is not None:
            magnitudes = np.ones(entry.shape[-1])
            magnitudes[list(OUTLIERS)] = 30.0
            inputs[entry.name] = InputStatistics(10, 10 * magnitudes**2, magnitudes.astype(np.float32))
    return Statistics(inputs, 1, 10, ("text",), source.fingerprint())


def loss(source: ModelSource, statistics: Statistics, name: str, method: str) -> float:
    """Mean square of the layer's output error over that of its output."""
    weight = source.tensor(name).dequantize()
    mean_square = statistics.inputs[name].input_mean_square
    number_format = get_format("int4_channel")
    planes = METHODS[method].quantize(number_format, weight, LayerInputs(10, mean_square), threads=1)
    error = number_format.dequantize(planes, weight.shape[1]) - weight
    return float((np.square(error) @ mean_square).sum() / (np.square(weight) @ mean_square).sum())


def test_scaled_layers_lose_less_where_some_inputs_are_outliers(model: RandomModel) -> None:
    statistics = statistics_with_outliers(model)
    source = outlined(model, [parse_transform("awq_scaling")])
    result = decided(source, plan_of(source, "round_to_nearest"), statistics, lambda _: None, threads=1)
    assert result.statistics is not None
    for name in READERS:
        before = loss(model, statistics, name, "round_to_nearest")
        assert loss(result.source, result.statistics, name, "round_to_nearest") < 0.5 * before
    edges = {edge.edge: edge for edge in result.edges}
    assert edges["blk.0.ffn_norm"].strength
    ratio = edges["blk.0.ffn_norm"].loss_ratio
    assert ratio is not None
    assert ratio < 0.5


def test_scaling_is_not_used_where_every_input_is_alike(model: RandomModel) -> None:
    statistics = statistics_with_outliers(model)
    even = {
        name: replace(entry, sum_of_squares=np.full_like(entry.sum_of_squares, 10.0))
        for name, entry in statistics.inputs.items()
    }
    source = outlined(model, [parse_transform("awq_scaling")])
    plan = plan_of(source, "round_to_nearest")
    result = decided(source, plan, replace(statistics, inputs=even), lambda _: None, threads=1)
    assert {edge.strength for edge in result.edges} == {0.0}


def test_smoothing_evens_out_the_inputs(model: RandomModel) -> None:
    source = outlined(model, [parse_transform("smooth_quant:1")])
    statistics = statistics_with_outliers(model)
    result = decided(source, plan_of(source, "searched_scales"), statistics, lambda _: None, threads=1)
    assert result.statistics is not None
    for name in READERS:
        absmax = result.statistics.inputs[name].absmax
        # With strength 1 the weights have no say.
        assert absmax.max() <= 1.001 * absmax.min()


@pytest.mark.parametrize(
    ("words", "name", "axis"),
    [("residual_rotation", "blk.0.ffn_up.weight", 1), ("value_rotation", "blk.0.attn_output.weight", 1)],
)
def test_rotation_lowers_the_loss_of_rounding_weights_with_outliers(
    model: RandomModel, words: str, name: str, axis: int
) -> None:
    weight = np.random.default_rng(1).normal(0, 0.05, model.tensor(name).shape).astype(np.float32)
    weight[:, list(OUTLIERS)] *= 20.0
    spiky = with_tensor(model, name, weight)
    source = outlined(spiky, [parse_transform(words)])
    turned = decided(source, plan_of(source, "round_to_nearest"), None, lambda _: None, threads=1).source
    columns = weight.shape[axis]
    plain = Statistics({name: InputStatistics(1, np.ones(columns), np.ones(columns, np.float32))}, 1, 1, (), "")
    before, after = (loss(each, plain, name, "round_to_nearest") for each in (spiky, turned))
    assert after < 0.5 * before


@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (64, 1), (96, 1), (7, 3), (20, 2)])
def test_rotations_are_orthogonal_and_flat(size: int, blocks: int) -> None:
    rotation = Rotation.random((1,), size, blocks)
    matrix = rotation.turned(np.eye(size * blocks, dtype=np.float32)).astype(np.float64)
    # Entries are rounded to float32 once.
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size * blocks), atol=2.0**-23 * np.sqrt(size))
    assert np.abs(matrix).max() <= np.sqrt(2 / size) + 2.0**-23
    outside = np.kron(np.eye(blocks), np.ones((size, size))) == 0
    assert not matrix[outside].any()
    other = Rotation.random((2,), size, blocks)
    assert size * blocks < 7 or not np.array_equal(other.signs, rotation.signs)


@dataclass(frozen=True)
class _LayerNorm:
    """An operation that nothing here knows."""

    out: str
    x: str
    weight: str


def _program(*operations: Operation) -> Program:
    buffers = dict.fromkeys(("r", "n", "q", "k", "v", "a", "o", "p", "gate", "up", "g", "s", "b", "logits"), 8)
    return Program(buffers, (), operations, "logits")


def _block(*, post_norm: bool = False, values_norm: bool = False) -> list[Operation]:
    from lilliput.architectures.program import Embed

    steps: list[Operation] = [
        Embed("r", "embed.weight"),
        RmsNorm("n", "r", "norm.weight", 1e-5),
        *(Linear(out, "n", f"{out}.weight") for out in "qkv"),
    ]
    if values_norm:
        steps.append(RmsNorm("v", "v", "v_norm.weight", 1e-5, groups=2))
    steps += [Attention("a", "q", "k", "v", 0, 2, 2, 4, 1.0), Linear("o", "a", "o.weight")]
    if post_norm:
        steps.append(RmsNorm("p", "o", "post_norm.weight", 1e-5))
    return [*steps, Add("r", "r", "p" if post_norm else "o")]


def test_a_norm_after_a_layer_makes_the_stream_unturnable_and_says_which() -> None:
    with pytest.raises(UnsupportedModelError, match=r"post_norm\.weight: operation RmsNorm writes to the residual"):
        residual_stream(_program(*_block(post_norm=True)))
    found = foldable_edges(_program(*_block(post_norm=True)))
    assert [edge.name for edge in found.edges] == ["norm", "v"]
    assert found.refused == {"post_norm": "operation Add reads it, which is not linear in it"}


def test_rows_that_are_dropped_on_the_way_change_no_edge() -> None:
    steps = list(_block())
    place = next(index for index, each in enumerate(steps) if isinstance(each, Attention)) + 1
    end = [Linear("o", "b", "o.weight"), Add("s", "s", "o"), RmsNorm("n", "s", "last.weight", 1e-5)]
    end.append(Linear("logits", "n", "head.weight"))
    program = _program(*steps[:place], SelectOutputRows("s", "r"), SelectOutputRows("b", "a"), *end)
    assert [(edge.name, edge.readers) for edge in foldable_edges(program).edges] == [
        ("norm", ("q.weight", "k.weight", "v.weight")), ("v", ("o.weight",)), ("last", ("head.weight",))
    ]  # fmt: skip
    assert residual_stream(program).writers == ("o.weight",)


def test_an_operation_that_nobody_knows_is_refused_not_ignored() -> None:
    strange: Operation = _LayerNorm("n", "r", "layer_norm.weight")  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=r"layer_norm\.weight: operation _LayerNorm reads the residual"):
        residual_stream(_program(*_block(), strange, Linear("logits", "n", "head.weight")))


def test_a_layer_norm_is_an_edge_and_rows_of_a_fused_weight_are_one_use_of_it() -> None:
    from lilliput.architectures.program import Embed, LayerNorm

    qkv = [Linear(out, "n", "qkv.weight", rows=(8 * i, 8 * i + 8)) for i, out in enumerate("qkv")]
    steps = [Embed("r", "embed.weight"), LayerNorm("n", "r", "norm.weight", "norm.bias", 1e-5), *qkv]
    steps += [Attention("a", "q", "k", "v", 0, 2, 2, 4, 1.0), Linear("o", "a", "o.weight"), Add("r", "r", "o")]
    (edge,) = foldable_edges(_program(*steps)).edges
    assert (edge.name, edge.makers, edge.readers) == ("norm", ("norm.weight", "norm.bias"), ("qkv.weight",))
    with pytest.raises(UnsupportedModelError, match=r"norm\.weight: operation LayerNorm reads the residual stream"):
        residual_stream(_program(*steps))
    other = [Linear("gate", "o", "qkv.weight", rows=(0, 8))]
    assert foldable_edges(_program(*steps, *other)).refused == {"norm": "qkv.weight is used in several places"}


def test_values_behind_a_norm_are_no_edge() -> None:
    assert [edge.name for edge in foldable_edges(_program(*_block(values_norm=True))).edges] == ["norm"]


def test_a_weight_that_is_used_twice_is_no_edge() -> None:
    block = [*_block(), RmsNorm("p", "r", "norm.weight", 1e-5), Linear("logits", "p", "head.weight")]
    found = foldable_edges(_program(*block))
    assert "norm" in found.refused
    assert "used in several places" in found.refused["norm"]
    with pytest.raises(UnsupportedModelError, match=r"norm\.weight.*several places"):
        residual_stream(_program(*block))


def test_gate_and_up_from_one_layer_are_no_edge() -> None:
    block = [*_block(), RmsNorm("p", "r", "ffn.weight", 1e-5), Linear("up", "p", "up.weight")]
    glu = [Glu("g", "up", "up", "silu"), Linear("o", "g", "down.weight"), Add("r", "r", "o")]
    assert "up" not in [edge.name for edge in foldable_edges(_program(*block, *glu)).edges]


def test_a_vector_turned_by_rope_is_no_edge() -> None:
    from lilliput.architectures.program import RopeFrequencies

    steps: list[Operation] = list(_block())
    steps.insert(5, Rope("v", 2, 4, RopeFrequencies(1e4, 4), "halves"))
    assert [edge.name for edge in foldable_edges(_program(*steps)).edges] == ["norm"]


def test_untie_is_refused_where_nothing_is_tied(model: RandomModel) -> None:
    with pytest.raises(UnsupportedModelError, match="untie: this model's output head is not tied"):
        outlined(model, [parse_transform("untie")])


def test_untie_gives_the_head_a_row_of_its_own() -> None:
    tied = random_model(CONFIGS["llama-tied"])
    source = outlined(tied, [parse_transform("untie")])
    assert set(source.headers) - set(tied.headers) == {"output.weight"}
    assert not source.config.tied
    assert source.source_name("output.weight") == "lm_head.weight"
    assert np.array_equal(source.tensor("output.weight").dequantize(), tied.tensor("token_embd.weight").dequantize())


def test_a_tied_head_is_skipped_by_scaling_and_the_plan_says_why() -> None:
    source = outlined(random_model(CONFIGS["llama-tied"]), [parse_transform("awq_scaling")])
    (planned,) = transform_plans(source)
    assert "output_norm" not in planned.edges
    assert "tied" in planned.skipped["output_norm"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("awq", r"unknown transform 'awq'.*known: awq_scaling, smooth_quant"),
        ("awq_scalin", "did you mean 'awq_scaling'"),
        ("value_rotation:0.5", "'value_rotation' has no strength"),
        ("smooth_quant:2", "strength '2' is not a number from 0 to 1"),
        ("smooth_quant:much", "strength 'much' is not a number"),
        ("smooth_quant:nan", "strength 'nan' is not a number"),
    ],
)
def test_names_and_strengths_that_make_no_sense_are_refused(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_transform(words)


def test_what_a_transform_needs_is_asked_for_before_any_work() -> None:
    scaling, rotation = TRANSFORMS["awq_scaling"], TRANSFORMS["residual_rotation"]
    with pytest.raises(CalibrationError, match=r"'awq_scaling' looks at the inputs.*--text, --statistics or --imatrix"):
        check_guidance([scaling], has_text=False, has_statistics=False)
    with pytest.raises(CalibrationError, match=r"'residual_rotation' mixes the inputs.*give --text"):
        check_guidance([rotation], has_text=False, has_statistics=True)
    check_guidance([scaling, rotation], has_text=True, has_statistics=False)


def test_smoothing_from_an_imatrix_says_that_it_has_no_maxima(model: RandomModel) -> None:
    statistics = statistics_with_outliers(model)
    without = {
        name: replace(entry, absmax=np.full_like(entry.absmax, np.nan)) for name, entry in statistics.inputs.items()
    }
    source = outlined(model, [parse_transform("smooth_quant")])
    with pytest.raises(
        CalibrationError, match=r"smooth_quant: the statistics hold no absolute maxima .*blk\.0\.attn_q"
    ):
        decided(source, plan_of(source, "copy"), replace(statistics, inputs=without), lambda _: None, threads=1)


def test_statistics_of_no_layer_of_this_model_are_refused(model: RandomModel) -> None:
    source = outlined(model, [parse_transform("awq_scaling")])
    nothing = Statistics({}, 1, 10, (), "")
    with pytest.raises(CalibrationError, match="the statistics hold nothing of this model's layers"):
        decided(source, plan_of(source, "round_to_nearest"), nothing, lambda _: None, threads=1)
