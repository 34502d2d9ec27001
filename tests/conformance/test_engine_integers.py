# SPDX-License-Identifier: Apache-2.0
"""Weights of integers under scales in the engine: integer inputs, exact sums, the bits of the arrays' arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reference_program import ProgramSource, encoded_tensor, float_tensor, run_program

from lilliput import _native
from lilliput.activations import FixedScale, IntegerInputs, get_input_format
from lilliput.architectures.program import (
    Activate,
    Embed,
    Experts,
    Glu,
    Linear,
    Operation,
    Program,
    SelectOutputRows,
)
from lilliput.errors import RuntimeModelError
from lilliput.formats.integer_lines import integer_lines
from lilliput.records import QuantizedTensor
from lilliput.runtime.integer_weights import INPUT_SCALE, INPUT_ZERO_POINT, input_choice
from lilliput.runtime.session import EngineOptions, Session

INSTRUCTION_SETS = _native.available_instruction_sets()
VOCABULARY, COLUMNS, ROWS = 40, 96, 37
UNIT = 2.0**-24
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, 29)


def random_weight(name: str, format_name: str, rows: int = ROWS, columns: int = COLUMNS) -> QuantizedTensor:
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    return encoded_tensor(name, values, format_name)


def table(columns: int = COLUMNS) -> QuantizedTensor:
    values = np.random.default_rng(8).standard_normal((VOCABULARY, columns)) * 3
    return float_tensor("table", values.astype(np.float32))


BIAS = float_tensor("bias", np.linspace(-1.0, 2.0, ROWS, dtype=np.float32))


def program_of(operations: list[Operation], widths: dict[str, int], tensors: list[QuantizedTensor], result: str):
    operations = [*operations, SelectOutputRows("logits", result)]
    program = Program({**widths, "logits": widths[result]}, (), tuple(operations), "logits")
    return ProgramSource(program, {tensor.name: tensor for tensor in tensors})


def linear_program(weight: QuantizedTensor, embedded: QuantizedTensor | None = None) -> ProgramSource:
    return program_of(
        [Embed("x", "table"), Linear("y", "x", "w", "bias")],
        {"x": COLUMNS, "y": ROWS}, [embedded or table(), weight, BIAS], "y",
    )  # fmt: skip


def run(source: ProgramSource, activations: str, instruction_set: str | None = None, threads: int = 1) -> np.ndarray:
    options = EngineOptions(
        threads=threads, activations=activations, kv_format="f32", instruction_set=instruction_set, context=64
    )
    return Session(source, options).forward(TOKENS, "all")


def expected(x: np.ndarray, weight: QuantizedTensor, inputs: IntegerInputs, fixed: FixedScale | None) -> np.ndarray:
    """Sums in int64, then the float operations in the order that the kernel states."""
    encoded = weight.format.unpack(weight.planes, weight.columns)
    lines = integer_lines(weight.format, encoded.parameters, weight.rows, weight.columns)
    assert lines is not None
    entered = inputs.quantize(x, fixed)
    own, theirs = entered.scale.shape[1], lines.scale.shape[1]
    groups = max(own, theirs)
    level = entered.codes.astype(np.int64) - np.repeat(entered.zero_point, COLUMNS // own, axis=1)
    integers = lines.levels[np.asarray(encoded.codes)].astype(np.int64)
    if lines.zero_point is not None:
        integers = integers - np.repeat(lines.zero_point, COLUMNS // theirs, axis=1)
    total = np.zeros((len(x), weight.rows), np.float32)
    for group, (left, right) in enumerate(
        zip(np.split(level, groups, axis=1), np.split(integers, groups, axis=1), strict=True)
    ):
        part = (left @ right.T).astype(np.float32) * lines.scale[:, group if theirs > 1 else 0]
        part = part * entered.scale[:, group, None] if own > 1 else part
        total = part if group == 0 else total + part
    return (total if own > 1 else total * entered.scale) + BIAS.dequantize()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("format_name", "activations", "means"),
    [
        ("int8_channel", "engine", "int8_token_asym"),
        ("int8_channel", "int8_token", "int8_token"),
        ("int8_channel", "int8_g32", "int8_g32"),
        ("int8_channel_asym", "engine", "int8_token_asym"),
        ("int4_g32", "engine", "int8_g32_asym"),
        ("int4_g32_asym", "int6_token", "int6_token"),
        ("int8_tensor", "engine", "int8_token_asym"),
        ("q8_0", "int8_token", "int8_token"),
    ],
)
def test_the_engine_has_the_bits_of_integer_arithmetic(instruction_set, format_name, activations, means):
    weight = random_weight("w", format_name)
    source = linear_program(weight)
    inputs = get_input_format(means)
    assert isinstance(inputs, IntegerInputs)
    exact = expected(source.tensors["table"].dequantize()[TOKENS], weight, inputs, None)
    for threads in (1, 2):
        assert np.array_equal(run(source, activations, instruction_set, threads), exact)


@pytest.mark.parametrize("zero_point", [None, 90])
def test_static_inputs_come_with_the_weight_and_are_used(zero_point):
    sidecars = {INPUT_SCALE: np.array([0.02], np.float32)}
    if zero_point is not None:
        sidecars[INPUT_ZERO_POINT] = np.array([zero_point], np.int32)
    weight = replace(random_weight("w", "int8_channel"), sidecars=sidecars)
    source = linear_program(weight)
    name = "int8_static" if zero_point is None else "int8_static_asym"
    inputs = get_input_format(name)
    assert isinstance(inputs, IntegerInputs)
    fixed = FixedScale(float(np.float32(0.02)), zero_point or 128)
    exact = expected(source.tensors["table"].dequantize()[TOKENS], weight, inputs, fixed)
    assert np.array_equal(run(source, "engine"), exact)
    assert np.array_equal(run(source, name), exact)
    assert not np.array_equal(run(source, "int8_token"), exact)
    # Measured as they are: the range of the inputs is no part of the weight.
    assert np.abs(run(source, "f32") - run_program(source, TOKENS, range(len(TOKENS)))).max() < 1e-3


def test_static_inputs_that_the_file_has_no_range_for_are_refused():
    with pytest.raises(RuntimeModelError, match=r"w: activations 'int8_static' need the range"):
        run(linear_program(random_weight("w", "int8_channel")), "int8_static")


def test_inputs_that_no_kernel_computes_with_are_refused():
    with pytest.raises(RuntimeModelError, match="f32, or integers"):
        run(linear_program(random_weight("w", "int8_channel")), "fp8_e4m3_token")


def test_rows_of_integers_are_looked_up_as_the_values_they_are():
    embedded = replace(random_weight("table", "int8_channel", VOCABULARY), name="table")
    source = program_of([Embed("x", "table", 2.0)], {"x": COLUMNS}, [embedded], "x")
    assert np.array_equal(run(source, "engine"), embedded.dequantize()[TOKENS] * 2)


def joined_and_apart(format_name: str, activation: str) -> tuple[np.ndarray, np.ndarray]:
    tensors = [table(), random_weight("w", format_name), BIAS]
    linear = Linear("y", "x", "w", "bias")
    widths = {"x": COLUMNS, "y": ROWS, "z": ROWS}
    joined = program_of([Embed("x", "table"), linear, Activate("y", "y", activation)], widths, tensors, "y")
    apart = program_of([Embed("x", "table"), linear, Activate("z", "y", activation)], widths, tensors, "z")
    return run(joined, "engine", threads=2), run(apart, "engine")


@pytest.mark.parametrize(
    ("format_name", "activation"),
    [("int8_channel", "relu"), ("int8_channel", "silu"), *((name, "gelu") for name in ("q8_0", "f32"))],
)
def test_an_activation_joined_to_its_linear_changes_no_bit(format_name, activation):
    joined, apart = joined_and_apart(format_name, activation)
    assert np.array_equal(joined, apart)


def test_gelu_of_integers_errs_by_less_than_it_says():
    # 2e-5, and the roundings of eleven steps on numbers of their size.
    joined, apart = joined_and_apart("int8_channel", "gelu")
    assert (np.abs(joined - apart) < 2e-5 + 11 * UNIT * np.abs(apart)).all()
    assert (np.abs(apart) < 5).mean() > 0.2


def test_weights_of_several_kinds_may_read_one_input():
    weights = [random_weight("a", "int8_channel"), random_weight("b", "int4_g32"), random_weight("c", "q8_0")]
    operations = [Embed("x", "table"), *(Linear(f"y{w.name}", "x", w.name, "bias") for w in weights)]
    widths = {"x": COLUMNS, **{f"y{w.name}": ROWS for w in weights}}
    for weight in weights:
        together = program_of(operations, widths, [table(), *weights, BIAS], f"y{weight.name}")
        assert np.array_equal(run(together, "engine"), run(linear_program(replace(weight, name="w")), "engine"))


def test_formats_with_kernels_of_their_own_keep_them_and_floats_stay_floats():
    assert input_choice(random_weight("w", "q8_0"), "engine") is None
    assert input_choice(random_weight("w", "int8_channel"), "f32") is None
    assert input_choice(random_weight("w", "f16"), "int8_token") is None


EXPERTS, INNER = 4, 48


def mixture_source(format_name: str, *, down: str | None = None) -> ProgramSource:
    """One expert a token, so that its share is 1. Expert 3 is chosen by few tokens."""
    rng = np.random.default_rng(4)
    router = rng.standard_normal((VOCABULARY, EXPERTS)).astype(np.float32) - np.array([0, 0, 0, 1], np.float32)
    shapes = {"gate": (EXPERTS, INNER, COLUMNS), "up": (EXPERTS, INNER, COLUMNS), "down": (EXPERTS, COLUMNS, INNER)}
    stacks = [
        encoded_tensor(name, rng.standard_normal(shape).astype(np.float32), (down or format_name) if name == "down" else
                       format_name)
        for name, shape in shapes.items()
    ]  # fmt: skip
    return program_of(
        [Embed("x", "table"), Embed("r", "router"), Experts("y", "x", "r", "gate", "up", "down", "silu", 1, True)],
        {"x": COLUMNS, "r": EXPERTS, "y": COLUMNS}, [table(), float_tensor("router", router), *stacks], "y",
    )  # fmt: skip


def one_expert(source: ProgramSource, expert: int) -> ProgramSource:
    """Every token through this expert's matrices, as linears."""

    def matrix(name: str) -> QuantizedTensor:
        stack = source.tensors[name]
        rows = stack.shape[1]
        part = stack.format.row_range(stack.planes, expert * rows, (expert + 1) * rows)
        return QuantizedTensor(name, stack.shape[1:], stack.format, part)

    return program_of(
        [Embed("x", "table"), Linear("g", "x", "gate"), Linear("u", "x", "up"), Glu("a", "g", "u", "silu"),
         Linear("y", "a", "down")],
        {"x": COLUMNS, "g": INNER, "u": INNER, "a": INNER, "y": COLUMNS},
        [table(), *(matrix(name) for name in ("gate", "up", "down"))], "y",
    )  # fmt: skip


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(
    ("format_name", "activations"),
    [
        ("int8_channel", "engine"),
        ("int8_channel_asym", "int8_token"),
        ("int6_channel", "engine"),
        ("int8_channel", "int8_g16"),
        ("int8_g16", "engine"),
    ],
)
def test_experts_of_integers_have_the_bits_of_their_linears(instruction_set, format_name, activations):
    source = mixture_source(format_name)
    chosen = source.tensors["router"].dequantize()[TOKENS].argmax(axis=1)
    exact = np.stack([run(one_expert(source, expert), activations, instruction_set) for expert in range(EXPERTS)])
    wanted = exact[chosen, np.arange(len(TOKENS))]
    for threads in (1, 2):
        assert np.array_equal(run(source, activations, instruction_set, threads), wanted)
    # A token alone takes another way: its inputs become integers once for all its experts.
    options = EngineOptions(
        threads=1, activations=activations, kv_format="f32", instruction_set=instruction_set, context=64
    )
    session = Session(source, options)
    alone = np.concatenate([session.forward(TOKENS[at : at + 1], "all") for at in range(3)])
    assert np.array_equal(alone, wanted[:3])


def test_experts_of_which_only_some_are_such_integers_run_as_the_values_of_the_file():
    source = mixture_source("int8_channel", down="f32")
    wanted = run_program(source, TOKENS, range(len(TOKENS)))
    found = run(source, "engine")
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_experts_of_integers_whose_sizes_do_not_fit_are_refused():
    source = mixture_source("int8_channel")
    operations = list(source.program.operations)
    for change, message in (
        ({"gate": "down"}, r"\[96, 48\], must be \[48, 96\]"),
        ({"used": 5}, "5 of 4 cannot be used"),
        ({"down": "up"}, "must be"),
    ):
        changed = [*operations[:-2], replace(operations[-2], **change), operations[-1]]
        with pytest.raises(RuntimeModelError, match=message):
            run(replace(source, program=replace(source.program, operations=tuple(changed))), "engine")
