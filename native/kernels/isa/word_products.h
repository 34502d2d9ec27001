// SPDX-License-Identifier: Apache-2.0
// Products of integers of 16 bits, two in a lane, as attention takes them: tiles of rows of words
// times groups of lanes. Included only by attention_words.cpp and whole_attention_words.cpp.
#pragma once

#include "kernels/isa/attention_block.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

using simd::Float;
using simd::Int;
constexpr int kWide = simd::kLanes;
// A lane holds the words of keys, or dimensions, i and i + kWide of so many.
constexpr int kPairBlock = 2 * kWide;
constexpr int kTileRows = simd::kRegisters == 32 ? 6 : 4;
constexpr int kTileGroups = simd::kRegisters == 32 ? 4 : 2;

// sums[r][g] = words of row r . lines of group g, `count` of each. GCC keeps sums in memory at the
// ends of loops over them unless those are unrolled: 10 % of all.
template <int kRows, int kGroups>
[[gnu::always_inline]] inline void multiply_words(const std::int32_t* words,
                                                  std::int64_t words_stride,
                                                  const std::int32_t* lines,
                                                  std::int64_t group_stride,
                                                  std::int64_t line_stride, std::int64_t count,
                                                  Int (&sums)[kRows][kGroups]) {
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sums[r][g] = simd::broadcast(0);
  }
  for (std::int64_t i = 0; i < count; ++i, lines += line_stride) {
    Int line[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) line[g] = simd::load_int(lines + g * group_stride);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Int word = simd::broadcast(words[r * words_stride + i]);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) sums[r][g] = simd::dot_words(sums[r][g], word, line[g]);
    }
  }
}

// Calls run(count of groups, group) for tiles of all groups.
template <typename Run>
inline void for_groups(std::int64_t groups, Run run) {
  std::int64_t group = 0;
  for (; group + kTileGroups <= groups; group += kTileGroups) run(RowCount<kTileGroups>{}, group);
  for (; group < groups; ++group) run(RowCount<1>{}, group);
}

// Calls run(count of rows, count of groups, row, group) for tiles of all rows and groups.
template <typename Run>
inline void for_tiles(std::int64_t rows, std::int64_t groups, Run run) {
  for_row_tiles<kTileRows>(rows, [&](auto count, std::int64_t row) {
    for_groups(groups, [&](auto wide, std::int64_t group) { run(count, wide, row, group); });
  });
}

}  // namespace
}  // namespace lilliput::kernels::LILLIPUT_ISA
