# SPDX-License-Identifier: Apache-2.0
"""Matrix kernels of every format and instruction set against float64 arithmetic on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import _native
from lilliput.arrays import ByteArray, FloatArray

INSTRUCTION_SETS = _native.available_instruction_sets()
FLOATS = ("f32", "f16", "bf16")
# Byte offsets of the fp16 numbers in a block: random bytes there would give Inf and NaN.
HALF_OFFSETS = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq1_s": (0,), "iq2_xxs": (0,), "iq2_xs": (0,), "iq2_s": (0,),
    "iq3_xxs": (0,), "iq3_s": (0,), "iq4_nl": (0,), "iq4_xs": (0,), "tq1_0": (52,), "tq2_0": (64,),
}  # fmt: skip
EPSILON = 2.0**-24
# Beyond so many, K-quants have kernels of their own.
FEW_TOKENS = 4
# Beyond so many, F16 and BF16 weights are multiplied as integers of 16 bits where that is faster.
MOST_FLOAT_TOKENS = 8


def block_shape(name: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    size, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    return int(size), int(n_bytes)


def random_weight(name: str, rows: int, columns: int, seed: int = 3) -> ByteArray:
    """Stored rows [rows, row_bytes] with every code possible and scales of ordinary size."""
    rng = np.random.default_rng(seed)
    if name in FLOATS:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return np.asarray(gguf.quantize(values, gguf.GGMLQuantizationType[name.upper()])).view(np.uint8)
    size, n_bytes = block_shape(name)
    blocks = rng.integers(0, 256, (rows * columns // size, n_bytes), dtype=np.uint8)
    halves = (rng.uniform(0.01, 0.02, (blocks.shape[0], 2)) * rng.choice([-1, 1])).astype(np.float16).view(np.uint8)
    for i, offset in enumerate(HALF_OFFSETS.get(name, ())):
        blocks[:, offset : offset + 2] = halves[:, 2 * i : 2 * i + 2]
    if name == "iq1_m":  # the four nibbles of 0x2400, lowest first, on top of four words
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | np.array([0x00, 0x00, 0x40, 0x20], dtype=np.uint8)
    if name == "mxfp4":
        blocks[:, 0] = 120 + blocks[:, 0] % 8
    if name == "nvfp4":
        blocks[:, :4] = 0x28 + blocks[:, :4] % 16
    return blocks.reshape(rows, -1)


def decoded(name: str, blocks: ByteArray, columns: int) -> FloatArray:
    return _native.decode(name, blocks, blocks.shape[0] * columns).reshape(-1, columns)


def random_inputs(tokens: int, columns: int) -> FloatArray:
    """Normal numbers with one large channel, one zero group and an offset."""
    x = np.random.default_rng(11).standard_normal((tokens, columns), dtype=np.float32) + np.float32(0.3)
    x[:, columns // 3] *= 30.0
    if columns > 64:
        x[:, -32:] = 0.0
    return x


@dataclass(frozen=True)
class GroupScales:
    """How inputs are rounded for a format with integer group scales (native/kernels/isa/scaled_input.h).

    largest: magnitude of a code less its zero point.  is_centred: whether it has one.
    """

    group_size: int
    largest: int
    is_centred: bool
    has_minimum: bool

    @property
    def largest_sum(self) -> int:
        """Of the magnitudes of a group's input codes, so that products sum up to an int16."""
        return 32767 // self.largest - self.group_size // 2 - 1


GROUP_SCALES = {
    "q4_k": GroupScales(32, 15, is_centred=False, has_minimum=True),
    "q5_k": GroupScales(32, 31, is_centred=False, has_minimum=True),
    "q6_k": GroupScales(16, 32, is_centred=True, has_minimum=False),
    "q3_k": GroupScales(16, 4, is_centred=True, has_minimum=False),
    "q2_k": GroupScales(16, 3, is_centred=False, has_minimum=True),
}


# Formats with a kernel for rows interleaved in memory.
SMALL_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4")
GROUPS_OF_16 = ("iq1_m", "iq2_s", "iq2_xs")
CODEBOOKS = ("iq1_m", "iq1_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_s", "iq3_xxs")
INTERLEAVED = (*GROUP_SCALES, *SMALL_BLOCKS, *CODEBOOKS, "iq4_xs", "nvfp4", "tq1_0", "tq2_0", "f16", "bf16")


# Formats whose scales become integers in memory where a dot product is one instruction.
WIDE_CODES = (
    *(n for n in SMALL_BLOCKS if n[-1] != "1"),
    *(n for n in CODEBOOKS if n not in GROUPS_OF_16),
    "iq4_xs",
    "tq1_0",
    "tq2_0",
)

# Of codes less their zero points; 128 where none is named.
LARGEST_MAGNITUDES = {
    "q4_0": 8, "q5_0": 16, "mxfp4": 12, "iq1_s": 9, "iq2_xxs": 43, "iq3_xxs": 62, "iq3_s": 15, "tq1_0": 1,
    "tq2_0": 1,
}  # fmt: skip


def quantized_inputs(name: str, x: FloatArray, *, interleaves: bool = False, isa: str = "") -> NDArray[np.float64]:
    """Activations as the integer kernels see them: int8 codes, a scale per 32.

    Of weights as they are stored, up to FEW_TOKENS are rounded the same for every format.
    """
    if has_wide_codes(name, isa, interleaves=interleaves):
        missing = -x.shape[1] % 256
        padded = np.pad(x, ((0, 0), (0, missing)))
        magnitudes = np.abs(padded.reshape(x.shape[0], -1, 32))
        scale = magnitudes.max(axis=2, keepdims=True) / np.float32(127.0)
        largest = LARGEST_MAGNITUDES.get(name, 128)
        dropped_bits = max(0, (32 * 127 * largest // 65401).bit_length())
        largest_sum = (32767 << dropped_bits) // largest - 17
        if largest_sum < 127 * 32:
            scale = np.maximum(scale, magnitudes.sum(axis=2, keepdims=True) / np.float32(largest_sum))
        scale = multiples_of_a_step(scale, 32767)[:, : x.shape[1] // 32]
        return rounded(x, scale)
    groups = x.reshape(x.shape[0], -1, 32)
    scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127.0)
    if name in GROUP_SCALES and (interleaves or x.shape[0] > FEW_TOKENS):
        scale = integer_group_scales(GROUP_SCALES[name], groups, scale)
    return rounded(x, scale)


def has_wide_codes(name: str, isa: str, *, interleaves: bool) -> bool:
    return interleaves and isa.endswith("_vnni") and name in WIDE_CODES


def rounded(x: FloatArray, scale: FloatArray) -> NDArray[np.float64]:
    """`x` in steps of `scale` [tokens, groups of 32, 1]."""
    groups = x.reshape(x.shape[0], -1, 32)
    inverse = np.divide(np.float32(1.0), scale, out=np.zeros_like(scale), where=scale > 0)
    quantized: NDArray[np.float64] = (np.rint(groups * inverse) * scale).astype(np.float64)
    return quantized.reshape(x.shape)


def multiples_of_a_step(scale: FloatArray, largest: int) -> FloatArray:
    """Each rounded up to a multiple, 1..largest, of one step per 256 columns; scale is [tokens, groups of 32, 1]."""
    segments = scale.reshape(scale.shape[0], -1, 8)
    step = segments.max(axis=2, keepdims=True) / np.float32(largest)
    codes = np.ceil(np.divide(segments, step, out=np.ones_like(segments), where=step > 0)).clip(1, largest)
    return np.asarray(step * codes, dtype=np.float32).reshape(scale.shape)


def integer_group_scales(kind: GroupScales, groups: FloatArray, scale: FloatArray) -> FloatArray:
    """Wide enough that a group's products fit int16.

    For groups of 32 a multiple, 1..127, of one step per 256; for groups of 16 one for each 64 columns.
    """
    parts = groups.reshape(*groups.shape[:2], -1, kind.group_size)
    positive, negative = parts.clip(min=0).sum(axis=3), -parts.clip(max=0).sum(axis=3)
    sums = positive + negative if kind.is_centred else np.maximum(positive, negative)
    if kind.largest_sum < 127 * kind.group_size:
        scale = np.maximum(scale, sums.max(axis=2, keepdims=True) / np.float32(kind.largest_sum))
    if kind.group_size == 16:
        of_64 = scale.reshape(scale.shape[0], -1, 2).max(axis=2)
        return np.asarray(np.repeat(of_64, 2, axis=1), dtype=np.float32).reshape(scale.shape)
    return multiples_of_a_step(scale, 127)


def rounding_of_sums(name: str, seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far minimums' shares may be off per unit of the largest minimum: 2^-15 of the largest sum of a group."""
    if name not in GROUP_SCALES or not GROUP_SCALES[name].has_minimum:
        return np.zeros((seen.shape[0], 1))
    n_groups = 256 // GROUP_SCALES[name].group_size
    sums = np.abs(seen.reshape(seen.shape[0], -1, n_groups, 256 // n_groups).sum(axis=3)).max(axis=2)
    return np.asarray(2.0**-15 * n_groups * sums.sum(axis=1, keepdims=True))


def rounding_of_words(name: str, seen: NDArray[np.float64], x_columns: int) -> NDArray[np.float64]:
    """How far wide codes may be off per unit of the largest weight.

    Twice half a 2^-15 of what the dot product of any group of a segment could be, or half a step of such dots where
    that is more (ternary weights), for each of its groups, and 2^-13 of the dots for the scales.
    """
    padded = np.pad(np.abs(seen), ((0, 0), (0, -x_columns % 256))).reshape(seen.shape[0], -1, 8, 32)
    step = max(2.0**-15 * 32, 1 / (127 * LARGEST_MAGNITUDES.get(name, 128)))
    most = padded.max(axis=(2, 3)) * 8
    dots = padded.sum(axis=(2, 3))
    return np.asarray((step * 1.1 * most + 2.0**-13 * dots).sum(axis=1, keepdims=True))


def uses_words(name: str, isa: str, tokens: int) -> bool:
    """Whether a float weight meets its inputs as codes of 16 bits (native/kernels/isa/word_matmul.cpp)."""
    return name in ("f16", "bf16") and isa.endswith("_vnni") and tokens > MOST_FLOAT_TOKENS


def rounding_of_float_words(x: FloatArray, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far products of words may be off, [tokens, rows].

    Half a step of either side's codes in each of 256 columns; steps are a 2^-15 of their Euclidean norm.
    """
    missing = ((0, 0), (0, -x.shape[1] % 256))
    sides = [np.pad(side, missing).reshape(side.shape[0], -1, 256) for side in (x.astype(np.float64), weight)]
    half_steps = [np.sqrt((side**2).sum(axis=2)) / 65534 for side in sides]
    sums = [np.abs(side).sum(axis=2) for side in sides]
    both = 256 * half_steps[0] @ half_steps[1].T
    return np.asarray(1.01 * (half_steps[0] @ sums[1].T + sums[0] @ half_steps[1].T + both))


def assert_matches_float64(
    name: str, isa: str, shape: tuple[int, int, int], *, exact_input: bool, interleaves: bool = False
) -> None:
    """Compare one product with float64; shape is (tokens, rows, columns)."""
    tokens, rows, columns = shape
    blocks = random_weight(name, rows, columns)
    weight = decoded(name, blocks, columns).astype(np.float64)
    x = random_inputs(tokens, columns)
    uses_float_input = exact_input or name in FLOATS
    seen = x.astype(np.float64) if uses_float_input else quantized_inputs(name, x, interleaves=interleaves, isa=isa)
    actual = _native.matmul(name, blocks, rows, x, isa, exact_input, interleaves=interleaves)
    assert actual.shape == (tokens, rows)
    # At most three roundings per product (float) or per group of 16 (integer), and some to join partial sums.
    # The unsigned codes, zero points and minimums that cancel in a weight are each at most 4 times the largest weight.
    roundings = columns + 16 if uses_float_input else 3 * (columns // 16) + 16
    magnitude = np.abs(seen).sum(axis=1, keepdims=True) * (1 if uses_float_input else 4)
    bound = roundings * EPSILON * magnitude * np.abs(weight).max(axis=1)
    if not uses_float_input:
        bound = bound + rounding_of_sums(name, seen) * 4 * np.abs(weight).max(axis=1)
    if has_wide_codes(name, isa, interleaves=interleaves) and not exact_input:
        bound = bound + rounding_of_words(name, seen, columns) * np.abs(weight).max(axis=1)
    if uses_words(name, isa, tokens) and not exact_input:
        bound = bound + rounding_of_float_words(x, weight)
    error = np.abs(actual - seen @ weight.T)
    assert np.all(error <= bound), f"largest error is {np.max(error / bound):.3g} of the bound"


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", _native.formats())
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 17, 27])
def test_product_matches_float64_on_the_same_inputs(name: str, isa: str, tokens: int) -> None:
    assert_matches_float64(name, isa, (tokens, 37, 512), exact_input=False)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", INTERLEAVED)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 17, 27])
def test_interleaved_product_matches_float64_on_the_same_inputs(name: str, isa: str, tokens: int) -> None:
    assert_matches_float64(name, isa, (tokens, 37, 512), exact_input=False, interleaves=True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("columns", [32, 96, 288, 896])
@pytest.mark.parametrize("name", [name for name in INTERLEAVED if name in SMALL_BLOCKS])
def test_interleaved_rows_may_end_inside_a_segment(name: str, columns: int, isa: str) -> None:
    for tokens in (1, 7, 20):
        assert_matches_float64(name, isa, (tokens, 5, columns), exact_input=False, interleaves=True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", INTERLEAVED)
def test_interleaved_weights_give_a_token_the_same_bits_whatever_tokens_come_with_it(name: str, isa: str) -> None:
    blocks, x = random_weight(name, 41, 768), random_inputs(40, 768)
    together = _native.matmul(name, blocks, 41, x, isa, interleaves=True)
    for tokens in (1, 2, 3, 5, 8, 13, 17):
        if name in FLOATS and tokens <= MOST_FLOAT_TOKENS:
            continue  # sums are taken in another order
        alone = _native.matmul(name, blocks, 41, x[:tokens], isa, interleaves=True)
        np.testing.assert_array_equal(alone, together[:tokens])
    if not has_wide_codes(name, isa, interleaves=True):
        np.testing.assert_array_equal(_native.matmul(name, blocks, 41, x, isa), together)


def test_a_format_without_a_kernel_for_interleaved_rows_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="f32: no kernel for interleaved rows"):
        _native.matmul("f32", random_weight("f32", 16, 256), 16, random_inputs(1, 256), "scalar", interleaves=True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", _native.formats())
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_product_with_float_inputs_matches_float64(name: str, isa: str, tokens: int) -> None:
    assert_matches_float64(name, isa, (tokens, 19, 512), exact_input=True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("columns", [32, 96, 288, 896])
@pytest.mark.parametrize("name", ["f32", "f16", "q4_0", "q5_1", "q8_0", "iq4_nl", "mxfp4"])
def test_rows_that_end_inside_a_segment_are_read_to_their_end_and_no_further(name: str, columns: int, isa: str) -> None:
    for tokens in (1, 7):
        assert_matches_float64(name, isa, (tokens, 5, columns), exact_input=False)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", FLOATS)
def test_float_rows_may_have_any_length(name: str, isa: str) -> None:
    for columns in (1, 31, 172, 257):
        for tokens in (1, 2, 4, 7, 20):
            assert_matches_float64(name, isa, (tokens, 5, columns), exact_input=False)
            if name != "f32":
                assert_matches_float64(name, isa, (tokens, 37, columns), exact_input=False, interleaves=True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_float_weights_give_a_token_of_many_the_same_bits_whatever_tokens_come_with_it(name: str, isa: str) -> None:
    if not uses_words(name, isa, 9):
        pytest.skip(f"{isa} multiplies floats")
    blocks, x = random_weight(name, 41, 700), random_inputs(40, 700)
    together = _native.matmul(name, blocks, 41, x, isa)
    for tokens in (9, 12, 17):
        np.testing.assert_array_equal(_native.matmul(name, blocks, 41, x[:tokens], isa), together[:tokens])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_words_of_extreme_weights_and_inputs_do_not_overflow(name: str, isa: str) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    single = np.zeros((16, 512), dtype=np.float32)
    single[:, 77] = 60000.0
    for values in (np.full((16, 512), 60000.0, dtype=np.float32), single, single * 0, single * np.float32(1e-9)):
        weight = np.asarray(gguf.quantize(values, kind)).view(np.uint8)
        for scale in (1e18, 1e-18, 0.0):
            x = np.full((20, 512), scale, dtype=np.float32)
            actual = _native.matmul(name, weight, 16, x, isa)
            expected = x.astype(np.float64) @ decoded(name, weight, 512).astype(np.float64).T
            np.testing.assert_allclose(actual, expected, rtol=3e-4, atol=0)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("rows", [1, 15, 16, 63, 64, 65, 130])
def test_any_number_of_rows_is_computed(rows: int, isa: str) -> None:
    for tokens in (1, 6, 64):
        assert_matches_float64("q4_k", isa, (tokens, rows, 256), exact_input=False)
        assert_matches_float64("f16", isa, (tokens, rows, 256), exact_input=False)


@pytest.mark.parametrize("name", ["q4_k", "f16"])
def test_more_tokens_than_one_chunk_are_computed(name: str) -> None:
    assert_matches_float64(name, INSTRUCTION_SETS[-1], (1035, 20, 256), exact_input=False)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["f32", "q4_k", "q8_0", "q6_k"])
def test_result_does_not_depend_on_threads_or_alignment(name: str, isa: str) -> None:
    blocks = random_weight(name, 150, 512)
    shifted = np.empty(blocks.size + 1, dtype=np.uint8)[1:].reshape(blocks.shape)
    shifted[:] = blocks
    for tokens in (1, 40):
        x = random_inputs(tokens, 512)
        expected = _native.matmul(name, blocks, 150, x, isa)
        np.testing.assert_array_equal(_native.matmul(name, shifted, 150, x, isa, threads=3), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", GROUP_SCALES)
def test_a_token_gives_the_same_bits_whatever_tokens_come_with_it(name: str, isa: str) -> None:
    blocks, x = random_weight(name, 41, 768), random_inputs(40, 768)
    together = _native.matmul(name, blocks, 41, x, isa)
    for tokens in (5, 13, 17):
        np.testing.assert_array_equal(_native.matmul(name, blocks, 41, x[:tokens], isa), together[:tokens])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", GROUP_SCALES)
def test_sums_of_equal_inputs_do_not_overflow(name: str, isa: str) -> None:
    # Every weight and input as large as can be, of one sign and of changing signs.
    blocks = random_weight(name, 16, 256)
    codes = {"q4_k": (16, 144), "q5_k": (16, 176), "q6_k": (0, 192), "q3_k": (0, 96), "q2_k": (16, 80)}[name]
    for filling in (0x00, 0xFF):
        blocks[:, codes[0] : codes[1]] = filling
        weight = decoded(name, blocks, 256).astype(np.float64)
        for signs in (np.ones(256), np.where(np.arange(256) % 16 < 8, 1.0, -1.0)):
            for tokens in (1, 5, 20):
                x = np.tile((signs * 1000.0).astype(np.float32), (tokens, 1))
                seen = quantized_inputs(name, x)
                bound = 64 * EPSILON * np.abs(seen).sum(axis=1, keepdims=True) + rounding_of_sums(name, seen)
                error = np.abs(_native.matmul(name, blocks, 16, x, isa) - seen @ weight.T)
                assert np.all(error <= bound * 4 * np.abs(weight).max(axis=1))


@pytest.mark.skipif("avx512_vnni" not in INSTRUCTION_SETS, reason="this machine has no AVX-512 VNNI")
@pytest.mark.parametrize("isa", [isa for isa in INSTRUCTION_SETS if isa in ("avx2", "avx_vnni")])
@pytest.mark.parametrize("name", [name for name in _native.formats() if name not in FLOATS])
def test_avx2_and_avx512_give_the_same_bits_for_many_tokens(name: str, isa: str) -> None:
    blocks, x = random_weight(name, 48, 512), random_inputs(9, 512)
    np.testing.assert_array_equal(
        _native.matmul(name, blocks, 48, x, isa), _native.matmul(name, blocks, 48, x, "avx512_vnni")
    )


@pytest.mark.skipif("avx_vnni" not in INSTRUCTION_SETS, reason="this machine or build has no AVX-VNNI")
@pytest.mark.skipif("avx512_vnni" not in INSTRUCTION_SETS, reason="this machine has no AVX-512 VNNI")
@pytest.mark.parametrize("name", [name for name in INTERLEAVED if name not in FLOATS])
def test_avx_vnni_and_avx512_give_the_same_bits_of_interleaved_rows(name: str) -> None:
    blocks = random_weight(name, 48, 768)
    for tokens in (1, 6, 33):
        x = random_inputs(tokens, 768)
        expected = _native.matmul(name, blocks, 48, x, "avx512_vnni", interleaves=True)
        np.testing.assert_array_equal(_native.matmul(name, blocks, 48, x, "avx_vnni", interleaves=True), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_largest_codes_and_inputs_do_not_overflow(isa: str) -> None:
    blocks = np.tile(np.concatenate([np.array([0, 0x3C], np.uint8), np.full(32, 0x80, np.uint8)]), (16, 8))
    for tokens in (1, 8):
        x = np.full((tokens, 256), 127.0, dtype=np.float32)
        np.testing.assert_array_equal(_native.matmul("q8_0", blocks, 16, x, isa), -128.0 * 127.0 * 256.0)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("filling", [0x80, 0x7F])
def test_largest_codes_and_inputs_of_interleaved_rows_do_not_overflow(filling: int, isa: str) -> None:
    blocks = np.tile(np.concatenate([np.array([0, 0x3C], np.uint8), np.full(32, filling, np.uint8)]), (16, 8))
    for tokens in (1, 8, 40):
        y = _native.matmul("q8_0", blocks, 16, np.full((tokens, 256), 127.0, np.float32), isa, interleaves=True)
        expected = float(np.int8(filling - 256 * (filling >> 7))) * 127.0 * 256.0
        # Where dots are rounded to 16 bits, such inputs have 6 bits and a sign.
        np.testing.assert_allclose(y, expected, rtol=0.5 / 63 if isa.endswith("_vnni") else 0)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", INTERLEAVED)
def test_a_scale_that_is_no_number_reaches_the_results_of_its_row(name: str, isa: str) -> None:
    if not HALF_OFFSETS.get(name):
        return
    blocks = random_weight(name, 16, 512)
    blocks[3, HALF_OFFSETS[name][0] : HALF_OFFSETS[name][0] + 2] = np.array([np.nan], np.float16).view(np.uint8)
    for tokens in (1, 20):
        y = _native.matmul(name, blocks, 16, random_inputs(tokens, 512), isa, interleaves=True)
        np.testing.assert_array_equal(np.isnan(y), np.tile(np.arange(16) == 3, (tokens, 1)))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_nan_among_the_inputs_reaches_the_result(isa: str) -> None:
    blocks = random_weight("q4_k", 16, 256)
    for tokens in (1, 8):
        x = random_inputs(tokens, 256)
        x[-1, 40] = np.nan
        y = _native.matmul("q4_k", blocks, 16, x, isa)
        assert np.isnan(y[-1]).all()
        assert np.isfinite(y[:-1]).all()


def test_matmul_names_what_does_not_fit() -> None:
    blocks, x = random_weight("q4_k", 2, 256), random_inputs(1, 256)
    with pytest.raises(ValueError, match=r"unknown instruction set 'sse9'; known: scalar, avx2, avx_vnni, avx512_vnni"):
        _native.matmul("q4_k", blocks, 2, x, "sse9")
    with pytest.raises(ValueError, match=r"q4_k: 288 bytes for a weight of \[3, 256\]"):
        _native.matmul("q4_k", blocks, 3, x, "scalar")


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_probes_say_how_much_they_did(isa: str) -> None:
    once, thousand = _native.probe_dots(isa, 1), _native.probe_dots(isa, 1000)
    assert abs(thousand - 1000 * once) <= 1000
    data = np.arange(4096, dtype=np.uint8)
    assert _native.probe_read(isa, data) == _native.probe_read(isa, data.copy())
