# SPDX-License-Identifier: Apache-2.0
"""Formats that are constructed from their names: the general families, their grammar and the standard set.

    int<2-8>_<region>           symmetric; _asym for a zero point, _pow2 for scales that are powers of two,
                                _narrow for as many levels below zero as above
    int<2-8>_<group>_ordered    groups in the order of importance, also _asym_ordered
    int<2-8>_<group>_affine     scale and minimum; _f32, also after a plain group, for float32 scales
    fp8_e4m3_<region>, fp8_e5m2_<region>, fp4_<region>
    nf4, nf4_<group>            _f16 for fp16 scales
    fp4bnb, fp4bnb_<group>      FP4 of bitsandbytes
    palette<1-8>_<region>
    pot<2-8>_<region>           powers of two
    fixed<m>.<n>                sign, m integer and n fraction bits, 2 to 16 in all
    ternary_<region>, binary_<region>
    <format>+columns<p>, <format>+sparse<p>   p percent in fp16, see `outliers`

region: tensor, channel, a group g16 g32 g64 g128 g256; block128 for FP8; rows8 rows16 rows32 for palettes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from lilliput.errors import FormatError
from lilliput.formats.binary import Binary
from lilliput.formats.eight_bit_float import EightBitFloat
from lilliput.formats.fixed_point import LARGEST_BITS, FixedPoint
from lilliput.formats.fp4_bitsandbytes import BitsAndBytesFP4
from lilliput.formats.integer import SymmetricInteger
from lilliput.formats.integer_affine import AffineInteger
from lilliput.formats.integer_narrow import NarrowInteger
from lilliput.formats.integer_power_scale import PowerScaleInteger
from lilliput.formats.integer_zero_point import ZeroPointInteger
from lilliput.formats.nf4 import NF4
from lilliput.formats.number_format import NumberFormat
from lilliput.formats.ordered_groups import OrderedGroups
from lilliput.formats.outliers import WithOutliers, with_outliers
from lilliput.formats.palette import Palette
from lilliput.formats.power_of_two import PowerOfTwo
from lilliput.formats.regions import CHANNEL, TENSOR, Region, group, row_group, square_block
from lilliput.formats.scaled_four_bit_float import ScaledFourBitFloat
from lilliput.formats.ternary import Ternary

GROUPS: Mapping[str, Region] = {region.name: region for region in map(group, (16, 32, 64, 128, 256))}
REGIONS: Mapping[str, Region] = {TENSOR.name: TENSOR, CHANNEL.name: CHANNEL, **GROUPS}
BLOCKS: Mapping[str, Region] = {region.name: region for region in (square_block(128),)}
ROW_GROUPS: Mapping[str, Region] = {region.name: region for region in map(row_group, (8, 16, 32))}


@dataclass(frozen=True, slots=True)
class Family:
    """One line of the grammar.

    start: what every name of the family, right or wrong, begins with.  pattern: of a right one.
    spelling: for people.  make: from the parts of a right name; None for a combination that is not one.
    """

    start: str
    pattern: re.Pattern[str]
    spelling: str
    make: Callable[[re.Match[str]], NumberFormat | None]


def _integer(found: re.Match[str]) -> NumberFormat | None:
    bits, region = int(found[1]), REGIONS[found[2]]
    match found[3]:
        case "asym":
            return ZeroPointInteger(bits, region)
        case "pow2":
            return PowerScaleInteger(bits, region)
        case "narrow":
            return NarrowInteger(bits, region)
        case "affine":
            return AffineInteger(bits, region) if region.is_group else None
        case "f32":
            return SymmetricInteger(bits, region, has_wide_scales=True) if region.is_group else None
        case "affine_f32":
            return AffineInteger(bits, region, has_wide_scales=True) if region.is_group else None
        case "ordered":
            return OrderedGroups(SymmetricInteger(bits, region)) if region.is_group else None
        case "asym_ordered":
            return OrderedGroups(ZeroPointInteger(bits, region)) if region.is_group else None
        case _:
            return SymmetricInteger(bits, region)


def _eight_bit_float(found: re.Match[str]) -> NumberFormat:
    return EightBitFloat("e4m3" if found[1] == "e4m3" else "e5m2", {**REGIONS, **BLOCKS}[found[2]])


def _fixed_point(found: re.Match[str]) -> NumberFormat | None:
    integer_bits, fraction_bits = int(found[1]), int(found[2])
    fits = 2 <= 1 + integer_bits + fraction_bits <= LARGEST_BITS
    return FixedPoint(integer_bits, fraction_bits) if fits else None


def _words(*regions: Mapping[str, Region]) -> str:
    return "|".join(name for part in regions for name in part)


_ANY = _words(REGIONS)
_ANY_TEXT = "tensor, channel, g16, g32, g64, g128 or g256"
FAMILIES: tuple[Family, ...] = (
    Family(
        "int",
        re.compile(rf"int([2-8])_({_ANY})(?:_(asym|pow2|narrow|affine|f32|affine_f32|ordered|asym_ordered))?"),
        f"int<2-8>_<region> with region {_ANY_TEXT}; then nothing, _asym, _pow2, _narrow, or _affine (groups only); "
        "_f32 for float32 scales of groups; _ordered or _asym_ordered for groups by importance, as GPTQ's desc_act",
        _integer,
    ),
    Family(
        "fp8",
        re.compile(rf"fp8_(e4m3|e5m2)_({_words(REGIONS, BLOCKS)})"),
        f"fp8_e4m3_<region> or fp8_e5m2_<region> with region {_ANY_TEXT}, or block128",
        _eight_bit_float,
    ),
    Family(
        "fp4",
        re.compile(rf"fp4_({_ANY})"),
        f"fp4_<region> with region {_ANY_TEXT}",
        lambda found: ScaledFourBitFloat(REGIONS[found[1]]),
    ),
    Family(
        "nf4",
        re.compile(rf"nf4(?:_({_words(GROUPS)}))?(_f16)?"),
        "nf4 (groups of 64) or nf4_<group> with group g16, g32, g64, g128 or g256; then nothing or _f16",
        lambda found: NF4(GROUPS[found[1] or "g64"], has_half_scales=found[2] is not None),
    ),
    Family(
        "fp4bnb",
        re.compile(rf"fp4bnb(?:_({_words(GROUPS)}))?"),
        "fp4bnb (groups of 64) or fp4bnb_<group> with group g16, g32, g64, g128 or g256",
        lambda found: BitsAndBytesFP4(GROUPS[found[1] or "g64"]),
    ),
    Family(
        "palette",
        re.compile(rf"palette([1-8])_({_words(REGIONS, ROW_GROUPS)})"),
        f"palette<1-8>_<region> with region {_ANY_TEXT}, or rows8, rows16, rows32",
        lambda found: Palette(int(found[1]), {**REGIONS, **ROW_GROUPS}[found[2]]),
    ),
    Family(
        "pot",
        re.compile(rf"pot([2-8])_({_ANY})"),
        f"pot<2-8>_<region> with region {_ANY_TEXT}",
        lambda found: PowerOfTwo(int(found[1]), REGIONS[found[2]]),
    ),
    Family(
        "fixed",
        re.compile(r"fixed(\d{1,2})\.(\d{1,2})"),
        "fixed<m>.<n> with m integer and n fraction bits beside the sign, 2 to 16 bits in all, such as fixed0.15",
        _fixed_point,
    ),
    Family(
        "ternary",
        re.compile(rf"ternary_({_ANY})"),
        f"ternary_<region> with region {_ANY_TEXT}",
        lambda found: Ternary(REGIONS[found[1]]),
    ),
    Family(
        "binary",
        re.compile(rf"binary_({_ANY})"),
        f"binary_<region> with region {_ANY_TEXT}",
        lambda found: Binary(REGIONS[found[1]]),
    ),
)
# What the suites, the tables and the suggestions know by name: each family in the forms that people ask for.
STANDARD = (
    *("int8_tensor", "int8_channel", "int8_g128", "int8_channel_asym", "int8_channel_pow2"),
    *("int8_channel_narrow", "int4_g128_narrow", "int4_g128_ordered", "int3_g32_asym_ordered"),
    *("int6_g128", "int5_g64_asym", "int4_tensor", "int4_channel", "int4_g128", "int4_g32", "int4_g128_asym"),
    *(
        "int4_g64_affine",
        "int4_g32_f32",
        "int4_g32_affine_f32",
        "int3_g128",
        "int3_g64_asym",
        "int2_g64_asym",
        "int2_g32_affine",
    ),
    *("fp8_e4m3_tensor", "fp8_e4m3_channel", "fp8_e4m3_block128", "fp8_e5m2_channel", "fp4_g32"),
    *("nf4", "nf4_f16", "fp4bnb", "palette4_tensor", "palette3_channel", "palette4_rows16", "palette2_g128"),
    *("pot4_g128", "fixed0.15", "fixed2.5", "ternary_g128", "ternary_channel", "binary_g128"),
)


def family_of(name: str) -> Family | None:
    """The family that a lower-case name belongs to, whether it is spelled right or not."""
    for family in FAMILIES:
        # "int" must not catch a file name: something that a name goes on with has to follow.
        if re.match(rf"{family.start}(?:[\d_]|$)", name):
            return family
    return None


@cache
def construct(name: str) -> NumberFormat | None:
    """The format of a lower-case name; None when it belongs to no family.

    Raises FormatError with what is allowed when it belongs to one and is not spelled right.
    """
    family = family_of(name)
    if family is None:
        return None
    found = family.pattern.fullmatch(name)
    made = family.make(found) if found else None
    if made is None:
        raise FormatError(f"unknown number format '{name}'; this family is spelled {family.spelling}")
    return made


def fitting_sibling(wanted: NumberFormat, columns: int) -> NumberFormat | None:
    """The same numbers in the largest smaller group that rows of `columns` divide into, or one scale a row.

    None where the format is of no family or has no such sibling.
    """
    if isinstance(wanted, WithOutliers):
        base = fitting_sibling(wanted.base, columns)
        return with_outliers(base, wanted.name.partition("+")[2]) if base is not None else None
    if family_of(wanted.name) is None:
        return None
    name = wanted.name
    if name.startswith(("nf4", "fp4bnb")) and "_g" not in name:
        name = re.sub("^(nf4|fp4bnb)", r"\1_g64", name)
    for region in [*sorted(GROUPS, key=lambda group: int(group[1:]), reverse=True), CHANNEL.name]:
        width = GROUPS[region].columns if region in GROUPS else 1
        sibling = re.sub(r"_(?:g\d+|block\d+)", f"_{region}", name, count=1)
        if width is None or width >= wanted.block_size or columns % width:
            continue
        try:
            return construct(sibling)
        except FormatError:
            continue  # an affine format has no form with one scale a row
    return None
