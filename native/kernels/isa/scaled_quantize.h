// SPDX-License-Identifier: Apache-2.0
// Quantizes 256 columns of one token as scaled_input.h says.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/isa/scaled_input.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Below this an inverse is not finite; such a group counts as zero.
inline constexpr float kSmallestScale = 0x1p-120f;
inline constexpr std::int32_t kLargestWord = 32767;

// 256 quantized columns of one token. The scale of each 32; groups of 32 have it as step * scale code,
// of groups of 16 two neighbours are equal.
struct Quantized {
  alignas(64) std::int8_t codes[kSegment];  // in the order of columns, or [128 columns][group % 2]
  float scale[8];
  float step;
  std::int32_t scale_codes[8];
  std::int32_t sum16[16];  // of codes in the order of columns
};

// A number for each 32 columns. Comparisons choose lane by lane, where branches would be mispredicted.
using Eight = float __attribute__((vector_size(32), may_alias));
using EightInts = std::int32_t __attribute__((vector_size(32), may_alias));

// What decides the scales of 32 columns, and of either half of them.
struct Extents {
  Eight largest[2];   // magnitude
  Eight positive[2];  // sums of the positive and of the negative numbers
  Eight negative[2];
  Eight poison[2];  // NaN if there is a NaN or an infinity, else 0
};

// Each 16 columns are a lane, first all first halves.
inline void find_extents(const float* x, Extents& extents) {
  alignas(64) float largest_lanes[16];
  alignas(64) float positive_lanes[16];
  alignas(64) float negative_lanes[16];
  alignas(64) float poison_lanes[16];
  for (int first = 0; first < 16; first += kLanes) {
    Float largest = simd::zero();
    Float poison = simd::zero();
    Float sums = simd::zero();
    Float magnitudes = simd::zero();
    for (int part = 0; part < 16; part += kLanes) {
      Int square[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int half = first + lane;
        square[lane] = (Int)simd::load(x + half % 8 * 32 + half / 8 * 16 + part);
      }
      simd::transpose(square);
      for (const Int& column : square) {
        const auto values = (Float)column;
        const Float magnitude = simd::absolute(values);
        largest = simd::max(largest, magnitude);
        poison += values * simd::zero();
        sums += values;
        magnitudes += magnitude;
      }
    }
    const Float half = simd::broadcast(0.5f);
    simd::store(largest_lanes + first, largest);
    simd::store(positive_lanes + first, (magnitudes + sums) * half);
    simd::store(negative_lanes + first, (magnitudes - sums) * half);
    simd::store(poison_lanes + first, poison);
  }
  std::memcpy(extents.largest, largest_lanes, sizeof(largest_lanes));
  std::memcpy(extents.positive, positive_lanes, sizeof(positive_lanes));
  std::memcpy(extents.negative, negative_lanes, sizeof(negative_lanes));
  std::memcpy(extents.poison, poison_lanes, sizeof(poison_lanes));
}

inline void raise_to(Eight& a, const Eight& b) { a = a > b ? a : b; }

// Every lane becomes the largest of so many neighbours.
template <int neighbours>
inline void spread_largest(Eight& a) {
  raise_to(a, __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6));
  if constexpr (neighbours == 8) {
    raise_to(a, __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5));
    raise_to(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3));
  }
}

// The smallest scales such that codes stay within 127 and dots of a group within int16: rounding
// adds at most half a code per column, float sums less than one in all. Tiny ones become 0.
template <ScaledGrid grid>
inline void find_scales(const Extents& extents, Eight& scales) {
  const Eight(&p)[2] = extents.positive;
  const Eight(&n)[2] = extents.negative;
  scales = extents.largest[0];
  raise_to(scales, extents.largest[1]);
  scales *= 1.0f / 127.0f;
  // Codes minus the zero point lie in -zero_point..largest_code - zero_point.
  constexpr int kMagnitude = grid.zero_point == 0 || grid.scales_dots
                                 ? grid.largest_code
                                 : std::max(grid.zero_point, grid.largest_code - grid.zero_point);
  constexpr int kMostSum =
      (kLargestWord << grid.dropped_bits) / kMagnitude - grid.group_size / 2 - 1;
  if constexpr (kMostSum < 127 * grid.group_size) {
    constexpr float kInverse = 1.0f / kMostSum;
    Eight sums = p[0] + p[1];
    if constexpr (grid.scales_dots) {
      sums += n[0] + n[1];
    } else if constexpr (grid.group_size == 32) {
      raise_to(sums, n[0] + n[1]);
    } else {
      sums = p[0] + n[0];
      raise_to(sums, p[1] + n[1]);
    }
    raise_to(scales, sums * kInverse);
  }
  scales = scales > kSmallestScale ? scales : Eight{};
}

// Where the 16 columns from 16 * i on lie of codes in pairs.
template <ScaledGrid grid>
constexpr int place_in_pairs(int i) {
  constexpr int kParts = grid.group_size / 16;
  const int group = i / kParts;
  const int pair = group / 2 % (4 / kParts);
  return i / 8 * 128 + group % 2 * 64 + pair * grid.group_size + i % kParts * 16;
}

// Codes of 32 columns from 16 * i on.
template <ScaledGrid grid, bool in_pairs>
inline void round_codes(const float* x, int i, float inverse, std::int8_t* codes) {
  for (const int half : {i, i + 1}) {
    std::int8_t* to = codes + (in_pairs ? place_in_pairs<grid>(half) : 16 * half);
    for (int column = 0; column < 16; column += kLanes) {
      const Float scaled = simd::load(x + 16 * half + column) * simd::broadcast(inverse);
      simd::store_int8(to + column, simd::round_to_int(scaled));
    }
  }
}

// Adjacent words are added until a lane has 16 columns.
inline void sum_codes(Quantized& result) {
  constexpr int kParts = kLanes / 4;  // of 16 columns in a vector of codes
  const Int one_bytes = simd::broadcast(0x01010101);
  const Int one_words = simd::broadcast(0x00010001);
  const auto add_neighbours = [=](Int a, Int b) {
    return simd::dot_words(Int{}, simd::pack_words(a, b), one_words);
  };
  for (int first = 0; first < 16; first += 4 * kParts) {
    Int sums[4];
    for (int i = 0; i < 4; ++i) {
      const Int codes = simd::load_int(result.codes + 16 * (first + kParts * i));
      sums[i] = simd::dot_unsigned(Int{}, one_bytes, codes);
    }
    alignas(64) std::int32_t whole[kLanes];
    simd::store_int(
        whole, add_neighbours(add_neighbours(sums[0], sums[1]), add_neighbours(sums[2], sums[3])));
    for (int part = 0; part < kParts; ++part) {
      for (int i = 0; i < 4; ++i) result.sum16[first + kParts * i + part] = whole[4 * part + i];
    }
  }
}

// in_pairs: codes lie as the products of two groups want them, and are not summed.
template <ScaledGrid grid, bool in_pairs>
void quantize(const float* x, int columns, Quantized& result) {
  alignas(64) float padded[kSegment];
  if (columns < kSegment) {
    std::copy_n(x, columns, padded);
    std::fill(padded + columns, padded + kSegment, 0.0f);
    x = padded;
  }
  Extents extents;
  find_extents(x, extents);
  Eight scales;
  find_scales<grid>(extents, scales);
  Eight poison = extents.poison[0] + extents.poison[1];
  if constexpr (grid.group_size == 16) {
    static_assert(kExactColumns == 64);
    spread_largest<2>(scales);
    poison += __builtin_shufflevector(poison, poison, 1, 0, 3, 2, 5, 4, 7, 6);
  } else {
    constexpr float kMostScaleCode = grid.scales_dots ? kLargestWord : 127;
    Eight step = scales;
    spread_largest<8>(step);
    step *= 1.0f / kMostScaleCode;
    // Rounded up: no code or dot grows beyond its bound.
    Eight wanted = step > kSmallestScale ? scales / step : Eight{};
    wanted = wanted > 1.0f ? wanted : Eight{} + 1.0f;
    wanted = wanted < kMostScaleCode ? wanted : Eight{} + kMostScaleCode;
    EightInts codes = __builtin_convertvector(wanted, EightInts);
    codes -= __builtin_convertvector(codes, Eight) < wanted;
    std::memcpy(result.scale_codes, &codes, sizeof(codes));
    scales = step * __builtin_convertvector(codes, Eight);
    result.step = step[0] > kSmallestScale ? step[0] : 0.0f;
    // A NaN makes the step NaN, so that it is not lost in the integers.
    for (int i = 0; i < 8; ++i) result.step += poison[i];
  }
  const Eight inverse = scales > kSmallestScale ? 1.0f / scales : Eight{};
  for (int group = 0; group < 8; ++group) {
    round_codes<grid, in_pairs>(x, 2 * group, inverse[group], result.codes);
  }
  scales += poison;
  std::memcpy(result.scale, &scales, sizeof(scales));
  if constexpr (!in_pairs) sum_codes(result);
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
