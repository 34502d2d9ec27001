// SPDX-License-Identifier: Apache-2.0
// Activations for weights whose group scales are integers, as they are stored or as words with one
// factor. Whole sums over groups stay integers and floats are touched once per 256 columns (groups of
// 32) or per 64 (groups of 16).
//
// Groups of 32: value = scale * scale_code * code, scale per 256 columns, scale_code 1..127 per 32.
// Groups of 16: value = scale * code, scale per 64 columns.
// |code| <= 127, and small enough that the dot product of a group with any codes of the format fits
// int16.
// Wide codes, groups of 32: dots do not fit int16 whatever the inputs are, or only just. They are
// rounded to it, dropped_bits of them, and scale_code is a fraction of 2^15 that multiplies them, so
// that the scale of 32 columns is as fine as a float. Sums of codes, which minimums multiply, are rounded to int16 with a factor per 256 columns:
// an error of 2^-16 of the largest.
#pragma once

#include "kernels/isa/tiling.h"
#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// What the preparation must know of a format.
struct ScaledGrid {
  int group_size;  // 16 or 32
  int zero_point;
  int largest_code;          // of wide codes the largest magnitude, less the zero point
  bool folds = false;        // scales into codes, for many tokens (scaled_tile.h)
  int least_product = 0;     // of a scale and a code without its zero point
  bool scales_dots = false;  // wide codes
  int dropped_bits = 0;
  bool has_minimum = false;
};

// Of weights as they are stored, up to kFewTokens are prepared and multiplied as for formats with
// float scales: row by row is the best stream of memory. Interleaved rows take tiles of 1, 2, 4 and 6
// tokens. Up to kMostFewScaled, codes lie as they are unpacked; for more, where dots are so cheap that
// scales count, those of two groups side by side, or multiplied by their scales.
inline constexpr std::int64_t kMostFewScaled = kLanes == 16 ? 16 : 8;
inline constexpr bool kPairsGroups = simd::kDotsAnyByte;
inline constexpr bool kFoldsScales = simd::kDotsAnyByte;
inline constexpr int kScaledTile = kLanes == 16 ? 8 : 4;

// How the inputs of many tokens lie, as their kernel wants them; those of few lie plainly.
enum class Arrangement { plain, paired, folded };

template <ScaledGrid grid>
constexpr Arrangement arrangement_of(std::int64_t tokens) {
  if (tokens <= kMostFewScaled) return Arrangement::plain;
  if (kFoldsScales && grid.folds) return Arrangement::folded;
  return kPairsGroups ? Arrangement::paired : Arrangement::plain;
}

// Calls body.operator()<tile>() with the tokens of a tile.
template <typename Body>
auto with_tile(std::int64_t tokens, Body body) {
  if (tokens == 1) return body.template operator()<1>();
  if (tokens == 2) return body.template operator()<2>();
  if (tokens <= 4) return body.template operator()<4>();
  // Whichever leaves less of the last tile empty.
  if constexpr (kScaledTile == 8) {
    if (tokens <= 6 || (tokens > 8 && tokens <= 12)) return body.template operator()<6>();
  }
  return body.template operator()<kScaledTile>();
}

// Columns whose sums stay integers in groups of 16.
inline constexpr int kExactColumns = 64;

// 256 columns of `tile` tokens, in a TileOrder.
template <int group_size, int tile = kScaledTile, bool has_starts = group_size == 16>
struct alignas(64) ScaledTile {
  static constexpr int kGroups = kSegment / group_size;
  // Four codes of consecutive columns: [quad][token], or paired and folded: [pair of groups][quad of
  // a group][token][group].
  std::int32_t codes[kSegment / 4 * tile];
  // Where the dots of a group start: -zero_point * sum of its codes, and half of what is dropped.
  // [group][token], or [pair][token][group]; of folded codes least_product * sum of 64, [64 columns]
  // [token].
  std::int32_t starts[has_starts ? kGroups * tile : 1];
  // Groups of 32 alone: [group][token], or [pair][token] as two words.
  std::int32_t scale_codes[group_size == 32 ? 8 * tile : 1];
  float scale[group_size == 16 ? kSegment / kExactColumns * tile : tile];
  // Sums of the codes of two groups as two words, times 2^sum_shift (groups of 32) or sum_scale.
  std::int32_t sums[kGroups / 2 * tile];
  std::int32_t sum_shift[tile];
  float sum_scale[tile];
};

// Groups of 16 have them, and wide codes.
template <ScaledGrid grid>
inline constexpr bool kHasStarts = grid.group_size == 16 || grid.scales_dots;
template <ScaledGrid grid>
inline constexpr std::int32_t kHalfOfDropped = (1 << grid.dropped_bits) / 2;
// What dots have lost to their rounding and to fractions.
template <ScaledGrid grid>
inline constexpr float kLostFactor = 1 << (grid.scales_dots ? 15 + grid.dropped_bits : 0);

}  // namespace lilliput::kernels::LILLIPUT_ISA
