# SPDX-License-Identifier: Apache-2.0
"""Each operation of the native engine against float64, on every instruction set that this machine runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from reference_program import ProgramSource, encoded_tensor, float_tensor, run_program

from lilliput import _native
from lilliput.architectures.program import (
    Activate,
    Add,
    Attention,
    Embed,
    Experts,
    Glu,
    KvState,
    LayerNorm,
    Linear,
    Operation,
    Program,
    RmsNorm,
    Rope,
    RopeFrequencies,
    Scale,
    SelectOutputRows,
    Softcap,
    YarnScaling,
)
from lilliput.errors import RuntimeModelError
from lilliput.runtime.lowering import linear_groups, lower
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
UNIT = 2.0**-24  # half a float32 step at 1.0
HALF_UNIT = 2.0**-11  # half a float16 step at 1.0
VOCABULARY = 128


def table(name: str, width: int, *, spread: float = 1.0):
    """An embedding table with a random row per token."""
    rng = np.random.default_rng(sum(name.encode()))
    return float_tensor(name, (rng.standard_normal((VOCABULARY, width)) * spread).astype(np.float32))


def single(operations: list[Operation], widths: dict[str, int], tensors: list, result: str, **states) -> ProgramSource:
    """A program of embeddings, the operations under test, and the selection of what they made."""
    operations = [*operations, SelectOutputRows("logits", result)]
    program = Program({**widths, "logits": widths[result]}, states.get("states", ()), tuple(operations), "logits")
    return ProgramSource(program, {tensor.name: tensor for tensor in tensors})


def run_engine(source: ProgramSource, tokens, instruction_set: str, *, kv_format="f32", threads=2):
    options = EngineOptions(
        threads=threads, activations="f32", kv_format=kv_format, instruction_set=instruction_set, context=2048
    )
    return Session(source, options).forward(tokens, "all")


def tokens_of(count: int):
    return np.random.default_rng(count).integers(0, VOCABULARY, count)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("width", "groups"), [(64, 1), (172, 1), (96, 4), (8, 1), (3, 3)])
def test_rms_norm_is_exact_to_its_rounding(instruction_set, width, groups):
    weight = float_tensor("w", np.linspace(0.5, 1.5, width // groups, dtype=np.float32))
    source = single(
        [Embed("x", "table"), RmsNorm("y", "x", "w", 1e-5, groups)],
        {"x": width, "y": width}, [table("table", width), weight], "y",
    )  # fmt: skip
    tokens = tokens_of(19)
    expected = run_program(source, tokens, range(19))
    # Sum of n squares, division, root, two products: relative n + 6 roundings.
    bound = (width // groups + 6) * UNIT * np.abs(expected)
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= bound).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [64, 172, 3])
@pytest.mark.parametrize("bias", ["b", None])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_layer_norm_is_exact_to_its_rounding(instruction_set, width, bias, mean):
    weight = float_tensor("w", np.linspace(0.5, 1.5, width, dtype=np.float32))
    shift = float_tensor("b", np.linspace(-1.0, 2.0, width, dtype=np.float32))
    rows = table("table", width).dequantize() + np.float32(mean)
    source = single(
        [Embed("x", "table"), LayerNorm("y", "x", "w", bias, 1e-5)],
        {"x": width, "y": width}, [float_tensor("table", rows), weight, shift], "y",
    )  # fmt: skip
    tokens = tokens_of(19)
    expected = run_program(source, tokens, range(19))
    # The mean errs by `width` roundings of the largest input; that error is divided by the deviation like the input
    # itself. Sum of squares, root, two products and a sum follow.
    x = rows[tokens].astype(np.float64)
    deviation = np.maximum(x.std(axis=1, keepdims=True), 1e-3)
    bound = (width + 3) * UNIT * np.abs(x).max(axis=1, keepdims=True) / deviation * 1.5
    bound = bound + (width + 8) * UNIT * (np.abs(expected) + 2.0)
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= bound).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("format_name", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("count", [1, 5, 70])
def test_linear_with_exact_input_is_within_the_dot_product_bound(instruction_set, format_name, count):
    rng = np.random.default_rng(5)
    weight = encoded_tensor("w", rng.standard_normal((37, 96)).astype(np.float32), format_name)
    bias = float_tensor("b", rng.standard_normal(37).astype(np.float32))
    source = single(
        [Embed("x", "table"), Linear("y", "x", "w", "b")], {"x": 96, "y": 37}, [table("table", 96), weight, bias], "y"
    )
    tokens = tokens_of(count)
    expected = run_program(source, tokens, range(count))
    x = source.tensors["table"].dequantize()[tokens].astype(np.float64)
    magnitude = np.abs(x) @ np.abs(weight.dequantize()).T.astype(np.float64) + np.abs(bias.dequantize())
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= (96 + 2) * UNIT * magnitude).all()


@pytest.mark.parametrize("format_name", ["f32", "q8_0", "int8_channel"])
def test_rows_of_a_fused_weight_give_what_the_rows_alone_give(format_name):
    rng = np.random.default_rng(6)
    weight = encoded_tensor("w", rng.standard_normal((48, 96)).astype(np.float32), format_name)
    bias = float_tensor("b", rng.standard_normal(48).astype(np.float32))
    ranges = {"q": (0, 16), "k": (16, 40), "v": (40, 48)}
    operations: list[Operation] = [Embed("x", "table")]
    operations += [Linear(out, "x", "w", "b", rows) for out, rows in ranges.items()]
    widths = {"x": 96, **{out: end - start for out, (start, end) in ranges.items()}}
    whole = single([Embed("x", "table"), Linear("y", "x", "w", "b")], {"x": 96, "y": 48}, [], "y")
    tokens = tokens_of(7)
    tensors = {tensor.name: tensor for tensor in (table("table", 96), weight, bias)}
    together = run_engine(ProgramSource(whole.program, tensors), tokens, INSTRUCTION_SETS[-1])
    for out, rows in ranges.items():
        part = ProgramSource(single(operations, widths, [], out).program, tensors)
        np.testing.assert_array_equal(run_engine(part, tokens, INSTRUCTION_SETS[-1]), together[:, slice(*rows)])
        expected = run_program(part, tokens, range(7))
        np.testing.assert_allclose(together[:, slice(*rows)], expected, atol=1e-4)


def test_rows_that_a_weight_does_not_have_are_refused():
    tensors = [table("t", 16), float_tensor("w", np.ones((8, 16), dtype=np.float32))]
    source = single([Embed("x", "t"), Linear("y", "x", "w", rows=(4, 12))], {"x": 16, "y": 8}, tensors, "y")
    with pytest.raises(RuntimeModelError, match="w: rows 4 to 12 were asked for, and it has 8"):
        lower(source.program, source.tensor)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("style", ["adjacent", "halves"])
@pytest.mark.parametrize(
    "frequencies",
    [
        RopeFrequencies(10_000.0, 16),
        RopeFrequencies(500_000.0, 8, factors="factors"),
        RopeFrequencies(10_000.0, 16, linear_factor=4.0),
        RopeFrequencies(10_000.0, 16, yarn=YarnScaling(8.0, 32)),
    ],
    ids=["base", "partial with factors", "linear", "yarn"],
)
def test_rope_turns_pairs_by_their_angles(instruction_set, style, frequencies):
    factors = float_tensor("factors", np.array([1.0, 1.5, 4.0, 8.0], dtype=np.float32))
    source = single(
        [Embed("x", "table"), Rope("x", 3, 16, frequencies, style)], {"x": 48}, [table("table", 48), factors], "x"
    )
    tokens = tokens_of(41)
    expected = run_program(source, tokens, range(41))
    x = source.tensors["table"].dequantize()[tokens]
    # Two products of rounded cosine and sine and one sum: at most 3 roundings of what a pair holds together.
    bound = 4 * UNIT * 2 * 1.3 * np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= bound).all()


ATTENTIONS = {
    "one head": Attention("y", "q", "k", "v", 0, 1, 1, 64, 0.125),
    "groups of two, head of 8": Attention("y", "q", "k", "v", 0, 8, 4, 8, 8**-0.5),
    "groups of eight": Attention("y", "q", "k", "v", 0, 16, 2, 16, 0.25),
    "one kv head for fifty": Attention("y", "q", "k", "v", 0, 50, 1, 16, 0.25),
    "head of 80, window": Attention("y", "q", "k", "v", 0, 4, 2, 80, 80**-0.5, window=7),
    "window over a block": Attention("y", "q", "k", "v", 0, 4, 2, 16, 0.25, window=70),
    "softcap": Attention("y", "q", "k", "v", 0, 6, 2, 24, 0.3, softcap=5.0),
}


def attention_source(attention: Attention) -> ProgramSource:
    widths = {
        "q": attention.heads * attention.head_dim,
        "k": attention.kv_heads * attention.head_dim,
        "v": attention.kv_heads * attention.head_dim,
        "y": attention.heads * attention.head_dim,
    }
    embeds = [Embed("q", "tq"), Embed("k", "tk"), Embed("v", "tv")]
    tables = [table("tq", widths["q"]), table("tk", widths["k"]), table("tv", widths["v"])]
    states = (KvState(0, attention.kv_heads, attention.head_dim),)
    return single([*embeds, attention], widths, tables, "y", states=states)


def attention_bound(source: ProgramSource, attention: Attention, tokens, *, input_error: float):
    """Error of the output when scores err by d and values by e: (e^(2 d) - 1 + e) max |v|.

    d: relative `input_error` of each product, and the rounding of head_dim + 8 operations, times sum |q| |k|.
    """
    q = np.abs(source.tensors["tq"].dequantize()[tokens]).astype(np.float64)
    k = np.abs(source.tensors["tk"].dequantize()[tokens]).astype(np.float64)
    v = np.abs(source.tensors["tv"].dequantize()[tokens]).max()
    q = q.reshape(len(tokens), attention.kv_heads, -1, attention.head_dim)
    k = k.reshape(len(tokens), attention.kv_heads, attention.head_dim)
    largest = attention.scale * np.einsum("tgad,sgd->gats", q, k).max()
    score_error = largest * (input_error + (attention.head_dim + 8) * UNIT) + 16 * UNIT
    # Softmax and the weighted sum add one rounding a key, and 3e-7 for the exponential.
    return (np.expm1(2 * score_error) + input_error + len(tokens) * UNIT + 6e-7) * v


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("count", [1, 8, 9, 64, 65, 200])
def test_attention_is_within_the_bound_of_its_roundings(instruction_set, name, count):
    attention, tokens = ATTENTIONS[name], tokens_of(count)
    source = attention_source(attention)
    expected = run_program(source, tokens, range(count))
    got = run_engine(source, tokens, instruction_set)
    assert np.abs(got - expected).max() <= attention_bound(source, attention, tokens, input_error=0.0)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_attention_over_a_float16_cache_loses_one_rounding_of_keys_and_values(instruction_set):
    attention, tokens = ATTENTIONS["groups of two, head of 8"], tokens_of(150)
    source = attention_source(attention)
    expected = run_program(source, tokens, range(150))
    error = np.abs(run_engine(source, tokens, instruction_set, kv_format="f16") - expected).max()
    assert error <= attention_bound(source, attention, tokens, input_error=HALF_UNIT)
    # And it is a float16 cache: exact ones are far closer.
    assert error > attention_bound(source, attention, tokens, input_error=0.0)


@cache
def long_reference(window: int | None):
    """A source, 1300 tokens and what their last ten rows are: made once for all instruction sets."""
    attention = Attention("y", "q", "k", "v", 0, 4, 2, 16, 0.25, window=window)
    source, tokens = attention_source(attention), tokens_of(1300)
    bound = attention_bound(source, attention, tokens, input_error=0.0)
    return source, tokens, run_program(source, tokens, range(1290, 1300)), bound


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("window", [None, 900])
def test_a_token_after_many_sees_ranges_of_keys_joined_exactly(instruction_set, window):
    source, tokens, expected, bound = long_reference(window)
    session = Session(source, EngineOptions(threads=2, kv_format="f32", instruction_set=instruction_set, context=1300))
    session.forward(tokens[:1290], "none")
    got = np.concatenate([session.forward(tokens[1290:1297], "all"), *(session.forward([t]) for t in tokens[1297:])])
    assert np.abs(got - expected).max() <= bound


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gated_activations_are_exact_to_their_rounding(instruction_set, activation):
    source = single(
        [Embed("a", "ta"), Embed("b", "tb"), Glu("y", "a", "b", activation)],
        {"a": 37, "b": 37, "y": 37}, [table("ta", 37, spread=4.0), table("tb", 37)], "y",
    )  # fmt: skip
    tokens = tokens_of(30)
    expected = run_program(source, tokens, range(30))
    gate, up = (source.tensors[name].dequantize()[tokens] for name in ("ta", "tb"))
    # Products and quotient, 3e-7 of the exponential; the Gaussian's argument and its erf are rounded at 1.
    bound = (8 * UNIT + 3e-7) * np.abs(expected) + 8 * UNIT * np.abs(gate * up)
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= bound).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "tanh"])
def test_activations_are_exact_to_their_rounding(instruction_set, activation):
    source = single(
        [Embed("a", "ta"), Activate("y", "a", activation)], {"a": 37, "y": 37}, [table("ta", 37, spread=4.0)], "y"
    )
    tokens = tokens_of(30)
    expected = run_program(source, tokens, range(30))
    x = np.abs(source.tensors["ta"].dequantize()[tokens])
    # As above; tanh is 1 less a quotient, whose rounding is that of 1.
    bound = (8 * UNIT + 3e-7) * np.abs(expected) + 8 * UNIT * np.maximum(x, 1.0)
    assert (np.abs(run_engine(source, tokens, instruction_set) - expected) <= bound).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
@pytest.mark.parametrize("value", [-1e30, -np.inf, -40.0, 0.0, 40.0, 1e30, np.inf, np.nan])
def test_activations_of_extreme_inputs_are_their_limits(instruction_set, activation, value):
    extreme = float_tensor("ta", np.full((VOCABULARY, 20), value, dtype=np.float32))
    source = single([Embed("a", "ta"), Activate("y", "a", activation)], {"a": 20, "y": 20}, [extreme], "y")
    limits = {"gelu": max(value, 0.0), "tanh": float(np.tanh(value))}
    expected = value if np.isnan(value) else limits[activation]
    np.testing.assert_allclose(run_engine(source, [3], instruction_set)[0], np.full(20, expected), atol=1e-30)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_scale_and_softcap_work_in_place(instruction_set):
    source = single(
        [Embed("a", "ta"), Scale("a", "a", 0.3), Softcap("a", "a", 2.0)], {"a": 21}, [table("ta", 21, spread=9.0)], "a"
    )
    tokens = tokens_of(12)
    expected = run_program(source, tokens, range(12))
    # The tangent errs by a few roundings of 1, times the limit.
    assert np.abs(run_engine(source, tokens, instruction_set) - expected).max() <= 2.0 * (8 * UNIT + 3e-7)


EXPERTS = {
    "two of four": Experts("y", "x", "r", "wg", "wu", "wd", "silu", 2, normalizes=True),
    "all of four": Experts("y", "x", "r", "wg", "wu", "wd", "gelu_tanh", 4, normalizes=False),
    "one of four": Experts("y", "x", "r", "wg", "wu", "wd", "relu", 1, normalizes=False),
}


def experts_source(experts: Experts, format_name: str) -> ProgramSource:
    rng = np.random.default_rng(8)
    shapes = {"wg": (4, 48, 64), "wu": (4, 48, 64), "wd": (4, 64, 48 if format_name == "f32" else 64)}
    if format_name != "f32":
        shapes |= {"wg": (4, 64, 64), "wu": (4, 64, 64)}
    weights = [
        encoded_tensor(name, (rng.standard_normal(shape) / 8).astype(np.float32), format_name)
        for name, shape in shapes.items()
    ]
    # Expert 3 is chosen by few tokens, and by none of the first ones.
    router = table("router", 4, spread=2.0).dequantize() - np.array([0, 0, 0, 5], dtype=np.float32)
    return single(
        [Embed("x", "tx"), Embed("r", "router"), experts],
        {"x": 64, "r": 4, "y": 64}, [table("tx", 64), float_tensor("router", router), *weights], "y",
    )  # fmt: skip


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("format_name", ["f32", "q8_0"])
@pytest.mark.parametrize("count", [1, 5, 90])
def test_experts_are_within_the_bound_of_their_dot_products(instruction_set, name, format_name, count):
    source = experts_source(EXPERTS[name], format_name)
    tokens = tokens_of(count)
    expected = run_program(source, tokens, range(count))
    # Two dot products of up to 64 terms, one after the other, whose terms exceed their sum by about 8.
    bound = 2 * (64 + 16) * UNIT * 8 * np.abs(expected).max()
    got = run_engine(source, tokens, instruction_set)
    assert np.abs(got - expected).max() <= bound
    if instruction_set == INSTRUCTION_SETS[-1]:
        np.testing.assert_array_equal(run_engine(source, tokens, instruction_set, threads=1), got)


def test_experts_whose_sizes_do_not_fit_are_refused():
    source = experts_source(EXPERTS["two of four"], "f32")
    for change, message in (
        ({"used": 5}, "5 of 4 cannot be used"),
        ({"down": "wg"}, "wg"),
        ({"router": "x"}, "wg: 192 rows, must be 64 times the 48 columns of wd"),
        ({"out": "x"}, "output buffer is one of its inputs"),
    ):
        operations = [*source.program.operations[:-2], replace(source.program.operations[-2], **change)]
        program = replace(source.program, operations=tuple(operations))
        with pytest.raises(RuntimeModelError, match=message):
            lower(program, source.tensor)


def test_learned_positions_count_on_from_the_cache():
    tables = [table("t", 16), table("p", 16)]
    source = single(
        [Embed("x", "t"), Embed("p", "p", by="position", offset=2), Add("y", "x", "p")],
        {"x": 16, "p": 16, "y": 16}, tables, "y",
    )  # fmt: skip
    tokens = tokens_of(100)
    expected = run_program(source, tokens, range(100)).astype(np.float32)
    session = Session(source, EngineOptions(threads=2, context=VOCABULARY - 2))
    got = np.concatenate([session.forward(tokens[:90], "all"), session.forward(tokens[90:], "all")])
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(RuntimeModelError, match=f"has {VOCABULARY - 2} rows"):
        Session(source, EngineOptions(context=VOCABULARY - 1))


def test_segments_choose_their_row_and_are_the_first_where_none_is_given():
    source = single(
        [Embed("x", "t"), Embed("s", "s", by="segment"), Add("y", "x", "s")],
        {"x": 16, "s": 16, "y": 16}, [table("t", 16), float_tensor("s", np.eye(2, 16, dtype=np.float32))], "y",
    )  # fmt: skip
    tokens = np.arange(5, dtype=np.int32)
    native = lower(source.program, source.tensor)
    engine = _native.Engine(native, context=8, batch=8, threads=1)
    rows = np.arange(5, dtype=np.int32)
    segments = np.array([0, 0, 1, 1, 0], dtype=np.int32)
    expected = run_program(source, tokens, range(5), segments=segments).astype(np.float32)
    np.testing.assert_array_equal(engine.forward(tokens, 0, rows, segments), expected)
    expected = run_program(source, tokens, range(5)).astype(np.float32)
    np.testing.assert_array_equal(engine.forward(tokens, 0, rows), expected)
    with pytest.raises(ValueError, match="segment 2 is none of the model's 2"):
        engine.forward(tokens, 0, rows, segments + np.int32(1))
    with pytest.raises(ValueError, match="1 segments for 5 tokens"):
        engine.forward(tokens, 0, rows, segments[:1])


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [-1e4, -100.0, -0.0, 100.0, 1e4, np.inf, np.nan])
def test_silu_of_extreme_inputs_is_what_float64_says(instruction_set, value):
    extreme = float_tensor("ta", np.full((VOCABULARY, 20), value, dtype=np.float32))
    one = float_tensor("tb", np.ones((VOCABULARY, 20), dtype=np.float32))
    source = single(
        [Embed("a", "ta"), Embed("b", "tb"), Glu("y", "a", "b", "silu")],
        {"a": 20, "b": 20, "y": 20},
        [extreme, one],
        "y",
    )
    with np.errstate(over="ignore", invalid="ignore"):
        expected = run_program(source, [3], [0])
    np.testing.assert_allclose(run_engine(source, [3], instruction_set), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_scaled_embedding_and_a_sum_are_rounded_once(instruction_set):
    source = single(
        [Embed("a", "ta", 3.0), Embed("b", "tb"), Add("y", "a", "b")],
        {"a": 21, "b": 21, "y": 21}, [table("ta", 21), table("tb", 21)], "y",
    )  # fmt: skip
    tokens = tokens_of(12)
    a, b = (source.tensors[name].dequantize()[tokens] for name in ("ta", "tb"))
    np.testing.assert_array_equal(run_engine(source, tokens, instruction_set), a * np.float32(3.0) + b)


def test_linears_of_one_input_are_joined_unless_one_feeds_another():
    q, k = Linear("q", "x", "wq"), Linear("k", "x", "wk")
    after = Linear("o", "q", "wo")
    overwrites = Linear("x", "x2", "wx")
    reads_again = Linear("v", "x", "wv")
    assert list(linear_groups((q, k, after))) == [(q, k), (after,)]
    assert list(linear_groups((q, overwrites, reads_again))) == [(q,), (overwrites,), (reads_again,)]


def bad_programs() -> dict[str, tuple[list[Operation], dict[str, int], str]]:
    norm = RmsNorm("y", "x", "w", 1e-5)
    return {
        "width of a weight": ([Embed("x", "t"), Linear("y", "x", "w8")], {"x": 16, "y": 4}, "must be"),
        "buffer read before written": ([norm], {"x": 16, "y": 16}, "before it is written"),
        "norm weight": ([Embed("x", "t"), RmsNorm("y", "x", "w8", 1e-5)], {"x": 16, "y": 16}, "must have 16"),
        "groups": ([Embed("x", "t"), RmsNorm("y", "x", "w", 1e-5, 3)], {"x": 16, "y": 16}, "does not divide"),
        "rotary dimension": (
            [Embed("x", "t"), Rope("x", 2, 8, RopeFrequencies(1e4, 16), "halves"), Add("y", "x", "x")],
            {"x": 16, "y": 16}, "exceeds the head",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bad_programs()))
def test_a_program_whose_widths_do_not_fit_is_refused_when_loaded(name):
    operations, widths, message = bad_programs()[name]
    tensors = [
        table("t", 16),
        float_tensor("w", np.ones(16, dtype=np.float32)),
        float_tensor("w8", np.ones((4, 8), dtype=np.float32)),
    ]
    source = single(operations, widths, tensors, "y")
    with pytest.raises(RuntimeModelError, match=message):
        lower(source.program, source.tensor)
