# SPDX-License-Identifier: Apache-2.0
"""Values as lines per group are the values of the file; the native loops over columns decide as the array code does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from stored_planes import finite_planes

from lilliput import _native
from lilliput.arrays import Array, ByteArray, FloatArray, IntArray
from lilliput.formats import FORMATS, Encoded, NumberFormat, get_format
from lilliput.formats.group_lines import GroupLines
from lilliput.methods.native_columns import native_lines

ROWS = 37
COLUMNS = 256


def lines_of(number_format: NumberFormat, parameters: dict[str, Array], rows: int) -> GroupLines:
    lines = number_format.group_lines(parameters, rows)
    assert lines is not None
    return lines


def some_parameters(number_format: NumberFormat, rows: int = ROWS) -> dict[str, Array]:
    planes = finite_planes(number_format, rows, COLUMNS, seed=4)
    return dict(number_format.unpack(planes, COLUMNS).parameters)


def has_lines(number_format: NumberFormat) -> bool:
    if not number_format.can_encode or not number_format.scopes:
        return False
    return number_format.group_lines(some_parameters(number_format), ROWS) is not None


WITH_LINES = [number_format for number_format in FORMATS.values() if has_lines(number_format)]


def test_every_format_of_single_columns_but_palettes_outliers_and_ordered_groups_has_lines() -> None:
    others = {
        item.name
        for item in FORMATS.values()
        if item.can_encode and item.scopes and item.unit == 1 and item not in WITH_LINES
    }
    ragged = {name for name in others if name.startswith("palette") or "+" in name or name.endswith("_ordered")}
    assert others == ragged


def on_lines(lines: GroupLines, codes: ByteArray) -> FloatArray:
    """Values of codes [rows, columns], which must be written ones, in the order that the docstring promises."""
    number = np.zeros(256, dtype=np.float32)
    number[lines.levels.codes] = lines.levels.numbers
    rows, columns = codes.shape

    def spread(array: Array) -> FloatArray:
        wide = np.repeat(array, lines.group or columns, axis=1)
        whole: FloatArray = np.broadcast_to(wide, (rows, columns))
        return whole

    level = number[codes]
    if lines.zero_point is not None:
        level = level - spread(lines.zero_point)
    value = spread(lines.scale) * level
    return value if lines.offset is None else value + spread(lines.offset)


@pytest.mark.parametrize("number_format", WITH_LINES, ids=lambda item: item.name)
def test_lines_give_the_bits_of_the_values(number_format: NumberFormat) -> None:
    parameters = some_parameters(number_format)
    lines = lines_of(number_format, parameters, ROWS)
    codes = np.random.default_rng(0).choice(lines.levels.codes, (ROWS, COLUMNS))
    expected = np.asarray(number_format.values(codes, parameters), dtype=np.float32)
    np.testing.assert_array_equal(on_lines(lines, codes).view(np.uint32), expected.view(np.uint32))


@dataclass(frozen=True, slots=True)
class Loop:
    """One native loop's arguments but for the format; see `_native.feed_back_columns`."""

    order: IntArray
    target: FloatArray
    original: FloatArray
    feedback: FloatArray

    def run(self, lines: _native.GroupLines, *, threads: int = 1, isa: str = "") -> tuple[ByteArray, FloatArray]:
        """Codes and errors."""
        codes, error = np.zeros(self.target.shape, np.uint8), np.zeros_like(self.target)
        _native.feed_back_columns(
            lines=lines,
            order=self.order,
            target=self.target,
            original=self.original,
            feedback=self.feedback,
            codes=codes,
            error=error,
            threads=threads,
            isa=isa,
        )
        return codes, error


def loop_without_feedback(weight: FloatArray) -> Loop:
    columns = weight.shape[1]
    order = np.random.RandomState(5).permutation(columns).astype(np.int32)
    ordered = np.ascontiguousarray(weight[:, order])
    return Loop(order, ordered, ordered, np.zeros((columns, columns), np.float32))


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("number_format", WITH_LINES, ids=lambda item: item.name)
def test_without_feedback_the_loop_gives_the_nearest_codes_and_their_values(
    number_format: NumberFormat, isa: str
) -> None:
    weight = (0.02 * np.random.RandomState(1).standard_t(3, (ROWS, COLUMNS))).astype(np.float32)
    weight[3] = 0.0
    weight[4, :100] = 1e-30
    parameters = number_format.fitted(weight)
    loop = loop_without_feedback(weight)
    lines = native_lines(number_format, parameters, weight.shape)
    assert lines is not None
    codes, error = loop.run(lines.lines, isa=isa)
    np.testing.assert_array_equal(codes, number_format.nearest_codes(weight, parameters))
    values = np.asarray(number_format.values(codes, parameters), dtype=np.float32)
    # The difference to 0 of a value of -0 is 0.
    np.testing.assert_array_equal(error, (values - weight)[:, loop.order])


def whole_numbers(rows: int, columns: int, seed: int = 0) -> Loop:
    """Quarters, and feedback of -1, 0 and 1: every sum is exact in float32."""
    draw = np.random.RandomState(seed)
    target = (draw.randint(-200, 200, (rows, columns)) / 4).astype(np.float32)
    original = target + (draw.randint(-8, 8, target.shape) / 4).astype(np.float32)
    feedback = np.triu(draw.randint(-1, 2, (columns, columns)), 1).astype(np.float32)
    return Loop(draw.permutation(columns).astype(np.int32), target, original, feedback)


def column_by_column(number_format: NumberFormat, parameters: dict[str, Array], loop: Loop) -> ByteArray:
    """The loop as methods/feedback.py writes it, on arrays."""
    codes, error = np.zeros(loop.target.shape, np.uint8), np.zeros_like(loop.target)
    for place, column in enumerate(loop.order.tolist()):
        at = slice(column, column + 1)
        wanted = loop.target[:, place] - error[:, :place] @ loop.feedback[:place, place]
        codes[:, at] = number_format.nearest_codes(wanted[:, None], parameters, at)
        value = number_format.values(codes[:, at], parameters, at)[:, 0]
        error[:, place] = value - loop.original[:, place]
    return codes


def whole_parameters(number_format: NumberFormat, rows: int, columns: int) -> dict[str, Array]:
    """Scales of 1, so that values are whole numbers."""
    planes = number_format.stored_planes(rows, columns)
    parameters: dict[str, Array] = {
        name: np.ones(spec.shape, spec.dtype) for name, spec in planes.items() if name != "codes"
    }
    if "zero_point" in parameters:
        parameters["zero_point"] = (np.arange(parameters["zero_point"].size) % 13).astype(np.uint8).reshape(-1, 1)
    return parameters


EXACT = ["int8_channel", "int4_channel", "int3_channel", "int4_channel_asym", "ternary_channel", "fp8_e4m3_tensor"]


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("columns", [1, 3, 64, 130])
@pytest.mark.parametrize("name", EXACT)
def test_feedback_decides_as_the_array_code_where_sums_are_exact(name: str, columns: int, isa: str) -> None:
    chosen, loop = get_format(name), whole_numbers(ROWS, columns)
    parameters = whole_parameters(chosen, ROWS, columns)
    lines = native_lines(chosen, parameters, loop.target.shape)
    assert lines is not None
    np.testing.assert_array_equal(lines_run(lines.lines, loop, isa), column_by_column(chosen, parameters, loop))


def lines_run(lines: _native.GroupLines, loop: Loop, isa: str) -> ByteArray:
    return loop.run(lines, isa=isa)[0]


@pytest.mark.parametrize("isa", _native.available_instruction_sets())
@pytest.mark.parametrize("name", EXACT)
def test_descent_decides_as_the_array_code_where_sums_are_exact(name: str, isa: str) -> None:
    chosen, columns = get_format(name), 70
    draw = np.random.RandomState(2)
    parameters = whole_parameters(chosen, ROWS, columns)
    weight = draw.randint(-6, 7, (ROWS, columns)).astype(np.float32)
    half = draw.randint(-1, 2, (columns, columns))
    # A diagonal of 4: quotients are exact.
    hessian = (np.triu(half, 1) + np.triu(half, 1).T + 4 * np.eye(columns)).astype(np.float32)
    codes = np.asarray(chosen.nearest_codes(weight + draw.randint(-2, 3, weight.shape), parameters), dtype=np.uint8)
    values = np.asarray(chosen.values(codes, parameters), dtype=np.float32)
    gradient = (values - weight) @ hessian
    expected, moves = codes.copy(), np.zeros_like(values)
    for column in range(columns):
        at = slice(column, column + 1)
        slope = gradient[:, column] + moves[:, :column] @ hessian[:column, column]
        code = chosen.nearest_codes((values[:, column] - slope / 4)[:, None], parameters, at)
        move = chosen.values(code, parameters, at)[:, 0] - values[:, column]
        is_better = (2 * slope + move * 4) * move < 0
        moves[:, column] = np.where(is_better, move, 0)
        expected[:, column] = np.where(is_better, code[:, 0], codes[:, column])
    assert moves.any()
    lines = native_lines(chosen, parameters, weight.shape)
    assert lines is not None
    found = np.zeros_like(values)
    _native.descend_columns(
        lines=lines.lines, hessian=hessian, gradient=gradient, values=values, codes=codes, moves=found, isa=isa
    )
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(found, moves)


def uneven(rows: int, columns: int) -> Loop:
    draw = np.random.RandomState(7)
    target = draw.standard_normal((rows, columns)).astype(np.float32)
    feedback = np.triu(draw.standard_normal((columns, columns)) * 0.1, 1).astype(np.float32)
    return Loop(draw.permutation(columns).astype(np.int32), target, target, feedback)


@pytest.mark.parametrize("name", ["q4_k", "iq4_xs", "int4_g128_asym", "fp8_e4m3_channel"])
def test_a_row_is_decided_alike_alone_and_among_others_on_any_number_of_threads(name: str) -> None:
    chosen, loop = get_format(name), uneven(41, COLUMNS)
    encoded: Encoded = chosen.encode(loop.target)

    def decided(rows: slice, threads: int) -> tuple[bytes, bytes]:
        part = {key: array[rows] for key, array in encoded.parameters.items()}
        own = Loop(loop.order, loop.target[rows], loop.original[rows], loop.feedback)
        lines = native_lines(chosen, part, own.target.shape)
        assert lines is not None
        codes, error = own.run(lines.lines, threads=threads)
        return codes.tobytes(), error.tobytes()

    whole = decided(slice(None), 1)
    assert decided(slice(None), 3) == whole
    pieces = [decided(slice(row, row + 1), 1) for row in range(41)]
    assert tuple(b"".join(part) for part in zip(*pieces, strict=True)) == whole


def with_scale(shape: tuple[int, int]) -> Callable[[], object]:
    def made() -> object:
        return _native.GroupLines(
            scale=np.ones(shape, np.float32),
            inverse=np.ones((2, 1), np.float32),
            offset=None,
            zero_point=None,
            group=4,
            numbers=np.array([0, 1], np.float32),
            codes=np.array([0, 1], np.uint8),
        )

    return made


def test_arrays_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"scales are \[3, 1\], other numbers \[2, 1\]"):
        with_scale((3, 1))()
    lines = with_scale((2, 1))()
    loop = whole_numbers(2, 5)
    with pytest.raises(ValueError, match="1 groups of 4 columns for 5"):
        loop.run(lines)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales of 2 rows for 3 rows of weights"):
        whole_numbers(3, 4).run(lines)  # type: ignore[arg-type]
    short = whole_numbers(2, 4)
    with pytest.raises(ValueError, match=r"original is \[2, 3\], expected \[2, 4\]"):
        Loop(short.order, short.target, short.original[:, :3], short.feedback).run(lines)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order within the block"):
        Loop(short.order + 1, short.target, short.original, short.feedback).run(lines)  # type: ignore[arg-type]
