// SPDX-License-Identifier: Apache-2.0
// Quantizes activations into the tiles of scaled_input.h.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/isa/int8_input.h"
#include "kernels/isa/scaled_input.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Below this an inverse is not finite; such a group counts as zero.
inline constexpr float kSmallestScale = 0x1p-120f;
inline constexpr std::int32_t kLargestWord = 32767;

// 256 quantized columns of one token. Groups of 32 have scale[0] and scale codes, groups of 16 the
// scale of each 32, two of which are equal.
struct Quantized {
  alignas(64) std::int8_t codes[kSegment];
  float scale[8];
  std::int32_t scale_codes[8];
  std::int32_t sum16[16];
};

// What decides the scale of 32 columns.
struct Extent {
  float largest;      // magnitude
  float positive[2];  // sums of the positive and of the negative numbers of each 16
  float negative[2];
  float poison;  // NaN if there is a NaN or an infinity, else 0
};

inline Extent extent_of(const float* x) {
  Float largest = simd::zero();
  Float poison = simd::zero();
  Extent extent;
  for (int half = 0; half < 2; ++half) {
    Float sums = simd::zero();
    Float magnitudes = simd::zero();
    for (int i = 0; i < 16; i += kLanes) {
      const Float values = simd::load(x + 16 * half + i);
      const Float magnitude = simd::absolute(values);
      largest = simd::max(largest, magnitude);
      poison += values * simd::zero();
      sums += values;
      magnitudes += magnitude;
    }
    const float sum = simd::sum(sums);
    const float magnitude = simd::sum(magnitudes);
    extent.positive[half] = 0.5f * (magnitude + sum);
    extent.negative[half] = 0.5f * (magnitude - sum);
  }
  extent.largest = simd::max_lane(largest);
  extent.poison = simd::sum(poison);
  return extent;
}

// The smallest scale of 32 columns such that codes stay within 127 and dots of a group within
// int16: rounding adds at most half a code per column, float sums less than one in all.
template <ScaledGrid grid>
float smallest_scale(const Extent& extent) {
  float scale = extent.largest / 127.0f;
  // Codes minus the zero point lie in -zero_point..largest_code - zero_point.
  constexpr int kMagnitude = grid.zero_point == 0 || grid.scales_dots
                                 ? grid.largest_code
                                 : std::max(grid.zero_point, grid.largest_code - grid.zero_point);
  constexpr int kMostSum =
      (kLargestWord << grid.dropped_bits) / kMagnitude - grid.group_size / 2 - 1;
  if constexpr (kMostSum >= 127 * grid.group_size) return scale;
  constexpr float kInverse = 1.0f / kMostSum;
  const float (&p)[2] = extent.positive;
  const float (&n)[2] = extent.negative;
  float sum;
  if constexpr (grid.scales_dots) {
    sum = p[0] + p[1] + n[0] + n[1];
  } else if constexpr (grid.group_size == 32) {
    sum = std::max(p[0] + p[1], n[0] + n[1]);
  } else {
    sum = std::max(p[0] + n[0], p[1] + n[1]);
  }
  return std::max(scale, sum * kInverse);
}

inline void round_codes(const float* x, float scale, std::int8_t* codes) {
  const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int i = 0; i < 32; i += kLanes) {
    const Float scaled = simd::load(x + i) * simd::broadcast(inverse);
    simd::store_int8(codes + i, simd::round_to_int(scaled));
  }
}

inline void sum_codes(Quantized& result) {
  for (int group = 0; group < 16; ++group) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += result.codes[16 * group + i];
    result.sum16[group] = sum;
  }
}

template <ScaledGrid grid>
void quantize(const float* x, int columns, Quantized& result) {
  alignas(64) float padded[kSegment];
  if (columns < kSegment) {
    std::copy_n(x, columns, padded);
    std::fill(padded + columns, padded + kSegment, 0.0f);
    x = padded;
  }
  float scales[8];
  float poison[8];
  float largest = 0.0f;
  for (int group = 0; group < 8; ++group) {
    const Extent extent = extent_of(x + 32 * group);
    const float scale = smallest_scale<grid>(extent);
    scales[group] = scale > kSmallestScale ? scale : 0.0f;
    poison[group] = extent.poison;
    largest = std::max(largest, scales[group]);
  }
  if constexpr (grid.group_size == 16) {
    static_assert(kExactColumns == 64);
    for (int group = 0; group < 8; group += 2) {
      scales[group] = scales[group + 1] = std::max(scales[group], scales[group + 1]);
      poison[group] = poison[group + 1] = poison[group] + poison[group + 1];
    }
  }
  constexpr float kMostScaleCode = grid.scales_dots ? kLargestWord : 127;
  const float step = largest / kMostScaleCode;
  for (int group = 0; group < 8; ++group) {
    if constexpr (grid.group_size == 32) {
      // Rounded up: no code or dot grows beyond its bound.
      const float wanted = step > kSmallestScale ? std::ceil(scales[group] / step) : 1.0f;
      const float code = std::min(std::max(wanted, 1.0f), kMostScaleCode);
      result.scale_codes[group] = static_cast<std::int32_t>(code);
      scales[group] = step * code;
    }
    round_codes(x + 32 * group, scales[group], result.codes + 32 * group);
    result.scale[group] = scales[group] + poison[group];
  }
  if constexpr (grid.group_size == 32) {
    // A NaN makes the scale NaN, so that it is not lost in the integers.
    result.scale[0] = step > kSmallestScale ? step : 0.0f;
    for (const float p : poison) result.scale[0] += p;
  }
  sum_codes(result);
}

inline std::int32_t two_words(std::int32_t low, std::int32_t high) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(low) & 0xffff) |
                                   static_cast<std::uint32_t>(high) << 16);
}

template <ScaledGrid grid, int tile>
void put_codes(const Quantized& from, int token, Arrangement arrangement,
               ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  constexpr int kQuads = grid.group_size / 4;
  for (int quad = 0; quad < kSegment / 4; ++quad) {
    const int group = quad / kQuads;
    const int index = arrangement == Arrangement::paired
                          ? 2 * ((group / 2 * kQuads + quad % kQuads) * tile + token) + group % 2
                          : quad * tile + token;
    std::memcpy(&to.codes[index], from.codes + 4 * quad, 4);
  }
}

template <int tile>
void put_sums(const Quantized& from, int token, ScaledTile<32, tile>& to) {
  std::int32_t sums[8];
  std::int32_t largest = 0;
  for (int group = 0; group < 8; ++group) {
    sums[group] = from.scale_codes[group] * (from.sum16[2 * group] + from.sum16[2 * group + 1]);
    largest = std::max(largest, std::abs(sums[group]));
  }
  int shift = 0;
  // Half a step is kept free for rounding up.
  while (largest >> shift >= kLargestWord) ++shift;
  const std::int32_t half = shift == 0 ? 0 : 1 << (shift - 1);
  for (int pair = 0; pair < 4; ++pair) {
    to.sums[pair * tile + token] =
        two_words((sums[2 * pair] + half) >> shift, (sums[2 * pair + 1] + half) >> shift);
  }
  to.sum_shift[token] = shift;
}

template <int tile>
void put_sums(const Quantized& from, int token, ScaledTile<16, tile>& to) {
  float largest = 0.0f;
  for (int group = 0; group < 16; ++group) {
    const float sum = from.scale[group / 2] * static_cast<float>(from.sum16[group]);
    largest = std::max(largest, std::abs(sum));
  }
  const float scale = largest / static_cast<float>(kLargestWord);
  const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int pair = 0; pair < 8; ++pair) {
    std::int32_t words[2];
    for (int i = 0; i < 2; ++i) {
      const float sum = from.scale[pair] * static_cast<float>(from.sum16[2 * pair + i]);
      words[i] =
          static_cast<std::int32_t>(std::nearbyint(std::isfinite(sum) ? sum * inverse : 0.0f));
    }
    to.sums[pair * tile + token] = two_words(words[0], words[1]);
  }
  to.sum_scale[token] = scale;
}

// Where the dots of each group start.
template <ScaledGrid grid, int tile>
void put_starts(const Quantized& from, int token, Arrangement arrangement,
                ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  constexpr int kParts = grid.group_size / 16;
  constexpr std::int32_t kHalf = (1 << grid.dropped_bits) / 2;
  for (int group = 0; group < kSegment / grid.group_size; ++group) {
    const int index = arrangement == Arrangement::paired
                          ? 2 * (group / 2 * tile + token) + group % 2
                          : group * tile + token;
    std::int32_t sum = 0;
    for (int i = 0; i < kParts; ++i) sum += from.sum16[kParts * group + i];
    to.starts[index] = kHalf - grid.zero_point * sum;
  }
}

template <ScaledGrid grid, int tile>
void put(const Quantized& from, int token, Arrangement arrangement,
         ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  put_codes<grid, tile>(from, token, arrangement, to);
  if constexpr (grid.scales_dots) {
    put_starts<grid, tile>(from, token, arrangement, to);
  } else {
    put_sums(from, token, to);
  }
  if constexpr (grid.group_size == 32) {
    // What dots have lost to their rounding and to fractions.
    constexpr int kLostBits = grid.scales_dots ? 15 + grid.dropped_bits : 0;
    to.scale[token] = from.scale[0] * static_cast<float>(1 << kLostBits);
    for (int group = 0; group < 8; ++group) {
      if (arrangement == Arrangement::plain) {
        to.scale_codes[group * tile + token] = from.scale_codes[group];
      } else if (group % 2 == 0) {
        to.scale_codes[group / 2 * tile + token] =
            two_words(from.scale_codes[group], from.scale_codes[group + 1]);
      }
    }
  } else {
    for (int i = 0; i < 4; ++i) to.scale[i * tile + token] = from.scale[2 * i];
    if (arrangement == Arrangement::folded) {
      for (int i = 0; i < 4; ++i) {
        const std::int32_t* sums = from.sum16 + 4 * i;
        to.starts[i * tile + token] = grid.least_product * (sums[0] + sums[1] + sums[2] + sums[3]);
      }
      return;
    }
    put_starts<grid, tile>(from, token, arrangement, to);
  }
}

template <ScaledGrid grid>
Quantized quantized_segment(const float* x, std::int64_t columns, std::int64_t segment) {
  Quantized quantized{};
  if (x != nullptr) {
    quantize<grid>(x + segment * kSegment, segment_columns(columns, segment), quantized);
  }
  return quantized;
}

// Weights as they are stored take few tokens as formats with float scales do.
template <ScaledGrid grid, bool is_interleaved>
std::size_t scaled_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  if (!is_interleaved && tokens <= kFewTokens) return int8_prepared_bytes<false>(tokens, columns);
  return with_tile(tokens, [=]<int tile>() {
    return static_cast<std::size_t>(divide_up(tokens, tile) * segments_of(columns)) *
           sizeof(ScaledTile<grid.group_size, tile, kHasStarts<grid>>);
  });
}

template <ScaledGrid grid, bool is_interleaved>
void scaled_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens,
                    std::int64_t columns, std::int64_t token_begin, std::int64_t token_end,
                    std::uint8_t* prepared) {
  if (!is_interleaved && tokens <= kFewTokens) {
    int8_prepare<false>(x, x_stride, tokens, columns, token_begin, token_end, prepared);
    return;
  }
  const std::int64_t segments = segments_of(columns);
  const Arrangement arrangement = arrangement_of<grid>(tokens);
  with_tile(tokens, [=]<int tile>() {
    const TileOrder order =
        tokens <= kMostFewScaled ? order_of_few(columns) : order_of_many(tokens, tile);
    // Tokens that fill up the last tile are zeros.
    const std::int64_t end = token_end < tokens ? token_end : round_up(tokens, tile);
    for (std::int64_t token = token_begin; token < end; ++token) {
      const float* row = token < tokens ? x + token * x_stride : nullptr;
      auto* tiles =
          reinterpret_cast<ScaledTile<grid.group_size, tile, kHasStarts<grid>>*>(prepared);
      for (std::int64_t segment = 0; segment < segments; ++segment) {
        put<grid, tile>(quantized_segment<grid>(row, columns, segment),
                        static_cast<int>(token % tile), arrangement,
                        tiles[order.of(token / tile, segment)]);
      }
    }
  });
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
