# SPDX-License-Identifier: Apache-2.0
"""The general families: names, layouts, tables and the searches behind them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lilliput.errors import FormatError, RecipeError
from lilliput.formats import FORMATS, Encoded, get_format
from lilliput.formats.eight_bit_float import e4m3_table, e5m2_table
from lilliput.formats.families import FAMILIES, STANDARD, fitting_sibling
from lilliput.formats.k_means import cluster
from lilliput.formats.nf4 import nf4_levels
from lilliput.formats.pattern_levels import small_float_table
from lilliput.formats.power_of_two import power_table
from lilliput.formats.regions import CHANNEL, TENSOR, group, row_group, square_block
from lilliput.formats.scoped_number import pack_bits, unpack_bits
from lilliput.recipes.recipe import find_recipe

LEGAL = [
    *("int2_tensor", "int3_g16", "int7_g256_asym", "int5_channel_asym", "int8_g32_pow2", "int6_g64_affine"),
    *("fp8_e5m2_block128", "fp8_e4m3_g64", "fp4_channel", "nf4_g128_f16", "nf4_g32", "palette1_g64", "palette8_rows32"),
    *("pot2_tensor", "pot8_g16", "fixed0.1", "fixed15.0", "fixed3.12", "ternary_g64", "binary_tensor"),
]


@pytest.mark.parametrize("name", LEGAL)
def test_any_legal_combination_is_constructed_from_its_name(name: str) -> None:
    number_format = get_format(name)
    assert number_format.name == name
    assert get_format(name.upper()) is number_format
    weight = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32)
    planes = number_format.pack(number_format.encode(weight))
    for plane, spec in number_format.stored_planes(9, 256).items():
        assert (planes[plane].dtype, planes[plane].shape) == (spec.dtype, spec.shape)
    assert number_format.dequantize(planes, 256).shape == (9, 256)


def test_the_default_group_of_nf4_has_one_name() -> None:
    assert get_format("nf4_g64").name == "nf4"
    assert get_format("nf4_g64_f16").name == "nf4_f16"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("int9_g128", r"int<2-8>_<region> with region tensor, channel, g16"),
        ("int4", r"int<2-8>_<region>"),
        ("int4_g100", r"g32, g64, g128 or g256"),
        ("int4_channel_affine", r"_affine \(groups only\)"),
        ("fp8_e3m4_channel", r"fp8_e4m3_<region> or fp8_e5m2_<region>"),
        ("palette9_tensor", r"palette<1-8>_<region>"),
        ("fixed8.8", r"2 to 16 bits in all"),
        ("nf4_channel", r"nf4_<group>"),
    ],
)
def test_an_illegal_combination_is_refused_with_the_grammar_of_its_family(name: str, allowed: str) -> None:
    with pytest.raises(FormatError, match=f"unknown number format '{name}'; this family is spelled .*{allowed}"):
        get_format(name)
    with pytest.raises(RecipeError, match=allowed):
        find_recipe(name)


def test_a_family_name_is_a_recipe() -> None:
    assert [rule.format for rule in find_recipe("int3_g32").rules] == ["int3_g32"]


def test_the_standard_set_has_every_family() -> None:
    assert set(STANDARD) <= set(FORMATS)
    for family in FAMILIES:
        assert any(name.startswith(family.start) for name in STANDARD), family.start


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4_g128", 4.125),
        ("int4_g128_asym", 4.1875),
        ("int4_g64_affine", 4.5),
        ("int8_channel", 8 + 32 / 4096),
        ("int4_tensor", 4 + 32 / 4096**2),
        ("int8_g32_pow2", 8.25),
        ("fp8_e4m3_block128", 8 + 32 / 128**2),
        ("nf4", 4.5),
        ("nf4_f16", 4.25),
        ("palette4_g128", 6),
        ("palette4_rows16", 4 + 256 / (16 * 4096)),
        ("fixed2.5", 8),
        # The last byte of a row of 4096 holds one code.
        ("ternary_channel", (820 * 8 + 32) / 4096),
        ("binary_g128", 1.125),
    ],
)
def test_bits_per_weight_of_families_are_computed_from_the_layout(name: str, bits: float) -> None:
    assert get_format(name).bits_per_weight == pytest.approx(bits, rel=1e-9)


def test_rows_that_do_not_divide_into_groups_are_refused_with_advice() -> None:
    with pytest.raises(FormatError, match=r"x: row length 192 .* INT4_G128's 128 columns; choose a smaller group"):
        get_format("int4_g128").check_columns("x", 192)


@pytest.mark.parametrize(
    ("wanted", "columns", "sibling"),
    [
        ("int4_g128", 192, "int4_g64"),
        ("int4_g128_asym", 72, "int4_channel_asym"),
        ("nf4", 96, "nf4_g32"),
        ("int4_g64_affine", 40, None),
        ("fp8_e4m3_block128", 96, "fp8_e4m3_g32"),
        ("q4_k", 192, None),
    ],
)
def test_rows_that_do_not_divide_get_the_same_numbers_in_smaller_groups(
    wanted: str, columns: int, sibling: str | None
) -> None:
    found = fitting_sibling(get_format(wanted), columns)
    assert (found.name if found else None) == sibling


@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_of_any_width_survive_packing_as_a_little_endian_bit_string(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 37)).astype(np.uint16)
    packed = pack_bits(codes, bits)
    assert packed.shape == (3, -(-37 * bits // 8))
    np.testing.assert_array_equal(unpack_bits(packed, bits, 37), codes)
    number = int.from_bytes(packed[0].tobytes(), "little")
    assert [number >> (bits * column) & ((1 << bits) - 1) for column in range(37)] == codes[0].tolist()


def test_nf4_levels_are_those_of_the_paper() -> None:
    # QLoRA (arXiv 2305.14314), appendix E, to the digits printed there.
    printed = [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
    np.testing.assert_allclose(nf4_levels(), printed, atol=2e-6)


def test_small_floats_are_those_of_the_ocp_text() -> None:
    np.testing.assert_array_equal(small_float_table(2, 1, 1)[:8], [0, 0.5, 1, 1.5, 2, 3, 4, 6])
    e4m3, e5m2 = e4m3_table(), e5m2_table()
    assert (np.nanmax(e4m3), e4m3[1], e4m3[0x08]) == (448, 2.0**-9, 2.0**-6)
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF]
    finite = e5m2[np.isfinite(e5m2)]
    assert (finite.max(), e5m2[1], e5m2[0x04]) == (57344, 2.0**-16, 2.0**-14)
    assert np.isinf(e5m2[[0x7C, 0xFC]]).all()


def test_powers_of_two_have_zero_and_both_signs() -> None:
    np.testing.assert_array_equal(power_table(3), [0, 0.25, 0.5, 1, -0.0, -0.25, -0.5, -1])


def test_codes_that_stand_for_nothing_are_never_chosen() -> None:
    weight = np.linspace(-9, 9, 512, dtype=np.float32).reshape(2, 256)
    for name in ("fp8_e4m3_channel", "fp8_e5m2_tensor"):
        number_format = get_format(name)
        encoded = number_format.encode(weight)
        assert np.isfinite(number_format.values(encoded.codes, encoded.parameters)).all()
    assert not (get_format("pot4_g128").encode(weight).codes == 8).any()


def test_fixed_point_rounds_half_to_even_and_stops_at_its_ends() -> None:
    number_format = get_format("fixed2.5")
    weight = np.array([[0.015625, 0.046875, -0.015625, 3.99, 100.0, -4.0, -100.0, 0.0]], dtype=np.float32)
    values = number_format.values(number_format.nearest_codes(weight, {}), {})
    np.testing.assert_array_equal(values[0], [0, 0.0625, 0, 3.96875, 3.96875, -4, -4, 0])


def test_ternary_codes_are_digits_of_base_3() -> None:
    number_format = get_format("ternary_channel")
    codes = np.array([[2, 1, 0, 2, 1, 1, 2]], dtype=np.uint8)
    planes = number_format.pack(Encoded(codes, {"scale": np.ones((1, 1), dtype=np.float32)}))
    assert planes["codes"].tolist() == [[2 + 3 + 2 * 27 + 81, 1 + 2 * 3]]


def test_a_zero_point_makes_zero_exact() -> None:
    weight = np.abs(np.random.default_rng(1).standard_normal((4, 128))).astype(np.float32) + 1
    weight[:, ::3] = 0
    for name in ("int4_g128_asym", "int2_tensor_asym"):
        number_format = get_format(name)
        encoded = number_format.encode(weight)
        assert not number_format.values(encoded.codes, encoded.parameters)[:, ::3].any()


def test_power_of_two_scales_are_powers_of_two() -> None:
    number_format = get_format("int4_channel_pow2")
    weight = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32) * 1e-3
    encoded = number_format.encode(weight)
    one = np.full_like(encoded.codes, 9)
    mantissa, _ = np.frexp(number_format.values(one, encoded.parameters))
    assert (mantissa == 0.5).all()


@pytest.mark.parametrize(
    "region", [TENSOR, CHANNEL, group(16), square_block(128), row_group(8)], ids=lambda region: region.name
)
def test_sums_and_extremes_of_regions_are_those_of_their_weights(region: object) -> None:
    values = np.random.default_rng(3).standard_normal((200, 256)).astype(np.float32)
    rows, columns = region.rows or 200, region.columns or 256  # type: ignore[attr-defined]
    found = region.sum(values)  # type: ignore[attr-defined]
    low, high = region.extremes(values)  # type: ignore[attr-defined]
    assert found.shape == low.shape == region.grid(200, 256)  # type: ignore[attr-defined]
    for i, j in np.ndindex(found.shape):
        part = values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        # Halving adds log2(n) roundings to each term.
        assert abs(found[i, j] - part.sum(dtype=np.float64)) < 1e-6 * np.abs(part).sum()
        assert (low[i, j], high[i, j]) == (part.min(), part.max())
    spread = np.broadcast_to(region.spread(low, 200, None), values.shape)  # type: ignore[attr-defined]
    assert (spread <= values).all()


def test_k_means_finds_the_best_partition_of_small_sets() -> None:
    draw = np.random.default_rng(4)
    values = draw.standard_t(2, (20, 12)).astype(np.float32)
    weights = draw.exponential(1, (20, 12)).astype(np.float32)
    centres = cluster(values, weights, 4)
    for row, (x, w) in enumerate(zip(values.astype(np.float64), weights.astype(np.float64), strict=True)):
        found = (w * (x[:, None] - centres[row][None]).__abs__().min(axis=1) ** 2).sum()
        order = np.argsort(x)
        x, w = x[order], w[order]
        best = min(
            sum(
                (w[a:b] * (x[a:b] - np.average(x[a:b], weights=w[a:b])) ** 2).sum()
                for a, b in zip((0, *cuts), (*cuts, 12), strict=True)
            )
            for cuts in combinations(range(1, 12), 3)
        )
        assert found <= best * (1 + 1e-5) + 1e-9


def test_a_large_palette_is_clustered_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    number_format = get_format("palette3_tensor")
    weight = np.random.default_rng(5).standard_normal((64, 256)).astype(np.float32)
    weight[7, 9] = 40
    whole = number_format.encode(weight)
    monkeypatch.setattr("lilliput.formats.palette.SAMPLE", 4096)
    sampled = number_format.encode(weight)

    def error(encoded: Encoded) -> float:
        return float(((number_format.values(encoded.codes, encoded.parameters) - weight) ** 2).sum())

    assert error(whole) <= error(sampled) < 1.1 * error(whole)
