// SPDX-License-Identifier: Apache-2.0
// How rows, tokens and columns are cut, for integer and float kernels alike.
//
// Few tokens (decode): each row's blocks are unpacked in registers and multiplied in place; memory
// sets the pace. Many tokens (prefill): kPanels panels of kLanes rows x 256 columns are unpacked
// and transposed into scratch once, rows as lanes, and multiplied with all tokens, kTokenTile at a
// time; sums wait in scratch between segments.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

using simd::Float;
using simd::Int;
using simd::kCodeVectors;
using simd::kLanes;
using simd::kSegment;

inline constexpr int kFewTokens = 4;
// Accumulators, dot products and operands of a tile must fit the registers. Four tokens of NEON: a
// vector of codes holds those of a quad.
inline constexpr int kTokenTile = kLanes == 16 ? 6 : 4;
inline constexpr int kPanelTile = simd::kRegisters == 32 ? 2 : 1;
inline constexpr int kPanels = 4;
inline constexpr int kRowBlock = kPanels * kLanes;
// Tokens whose sums wait in scratch together: 516 x 64 floats stay in a 1 MB L2.
inline constexpr std::int64_t kTokenChunk = 86 * 6;
static_assert(kTokenChunk % kTokenTile == 0);

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

inline std::int64_t segments_of(std::int64_t columns) { return divide_up(columns, kSegment); }
// Where the tiles of an input lie: at tile * tile_step + segment * segment_step. Few tokens meet all
// segments in turn; of many, a segment of all tokens meets a block of rows before the next one does.
struct TileOrder {
  std::int64_t tile_step;
  std::int64_t segment_step;

  std::int64_t of(std::int64_t tile, std::int64_t segment) const {
    return tile * tile_step + segment * segment_step;
  }
};
inline TileOrder order_of_few(std::int64_t columns) { return {segments_of(columns), 1}; }
inline TileOrder order_of_many(std::int64_t tokens, std::int64_t tile) {
  return {1, divide_up(tokens, tile)};
}
// Columns of segment `index`, 1..256.
inline int segment_columns(std::int64_t columns, std::int64_t index) {
  return static_cast<int>(std::min<std::int64_t>(kSegment, columns - index * kSegment));
}

// Sums of kRowBlock rows, [token][row], to y. They are too many to stay in a cache until they are
// read: past the caches, no line is read only to be overwritten.
inline void store_sums(const float* sums, std::int64_t tokens, int rows, float* y,
                       std::int64_t y_stride) {
  for (std::int64_t token = 0; token < tokens; ++token) {
    const float* from = sums + token * kRowBlock;
    float* to = y + token * y_stride;
    int row = 0;
    constexpr std::uintptr_t kVector = sizeof(Float);
    if (reinterpret_cast<std::uintptr_t>(to) % kVector == 0) {
      for (; row + kLanes <= rows; row += kLanes) simd::stream(to + row, simd::load(from + row));
    }
    std::copy(from + row, from + rows, to + row);
  }
  simd::end_streams();
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
