// SPDX-License-Identifier: Apache-2.0
// The innermost products of formats with integer group scales. Two kernels with the same results,
// bit for bit: sums of a segment are exact integers (groups of 32) or exact up to 32 columns and
// added in one order (groups of 16).
#pragma once

#include "kernels/isa/scaled_input.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// What the product must know of a format; many share one.
struct ScaledKind {
  int group_size;
  bool has_zero_point;
  bool has_minimum;
};

// The inputs of a kernel whose lanes are rows: one number for all lanes.
struct SharedInput {
  static constexpr int lanes = 1;
  static Int load(const std::int32_t* words) { return simd::broadcast(*words); }
  static Float load(const float* numbers) { return simd::broadcast(*numbers); }
};
// Where lanes are segments: a number for each.
struct LaneInput {
  static constexpr int lanes = kLanes;
  static Int load(const std::int32_t* words) { return simd::load_int(words); }
  static Float load(const float* numbers) { return simd::load(numbers); }
};

// What is left of a segment once its integers are summed: its share of the result.
template <ScaledKind kind, typename Input, typename Tile>
inline Float finish(const Tile& input, int t, Float factor, Float minus_minimum_factor, Int total,
                    Int minimums) {
  Float product = simd::to_float(total) * factor;
  if constexpr (kind.has_minimum) {
    const Int shifted = minimums << Input::load(input.sum_shift + t);
    product = simd::fma(simd::to_float(shifted), minus_minimum_factor, product);
  }
  return product * Input::load(input.scale + t);
}

// Groups of 16: the total carries the input's scales already.
template <ScaledKind kind, typename Input, typename Tile>
inline Float finish(const Tile& input, int t, Float factor, Float minus_minimum_factor, Float total,
                    Int minimums) {
  Float result = total * factor;
  if constexpr (kind.has_minimum) {
    const Float product = simd::to_float(minimums) * minus_minimum_factor;
    result = simd::fma(product, Input::load(input.sum_scale + t), result);
  }
  return result;
}

inline void add_to(float* sum, Float share) { simd::store(sum, simd::load(sum) + share); }

// ---- few tokens: codes as they are unpacked ----

template <int group_size>
struct TotalOf {
  using Type = Int;
};
template <>
struct TotalOf<16> {
  using Type = Float;
};

inline Int two_words(Int low, Int high) { return (low & simd::broadcast(0xffff)) | (high << 16); }

// How the tiles of tokens lie. SharedTiles: tokens side by side in one tile. LaneTiles: a tile of
// kLanes segments for each token.
template <int group_size, int width>
struct SharedTiles {
  using Input = SharedInput;
  using Tile = ScaledTile<group_size, width>;
  static constexpr int tokens = width;
  static constexpr int stride = width;
  const Tile* tile;
  const Tile& of(int) const { return *tile; }
  static constexpr int offset(int t) { return t; }
};
template <int group_size, int width>
struct LaneTiles {
  using Input = LaneInput;
  using Tile = ScaledTile<group_size, kLanes>;
  static constexpr int tokens = width;
  static constexpr int stride = kLanes;
  const Tile* first;
  std::int64_t tiles;  // of one token
  const Tile& of(int t) const { return first[t * tiles]; }
  static constexpr int offset(int) { return 0; }
};

// Multiplies codes as they are unpacked, so that they never leave the registers. What a format's
// unpack_rows is given, as simd::RowLanes.
template <ScaledKind kind, typename Tiles>
struct DotLanes {
  using Input = typename Tiles::Input;
  static constexpr int kTokens = Tiles::tokens;
  static constexpr int kStride = Tiles::stride;
  static constexpr int kGroups = kSegment / kind.group_size;
  static constexpr int kQuads = kind.group_size / 4;
  Tiles tiles;
  typename TotalOf<kind.group_size>::Type totals[kTokens];
  Int dots[kGroups][kTokens];
  Int scale[kGroups];
  Int minimum[kGroups];
  Float factor;
  Float minimum_factor;

  explicit DotLanes(const Tiles& tiles) : tiles(tiles), totals{} {}

  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    const int group = quad / kQuads;
    if (quad % kQuads == 0) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        dots[group][t] = kind.has_zero_point
                             ? Input::load(tiles.of(t).starts + group * kStride + Tiles::offset(t))
                             : Int{};
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const std::int32_t* inputs = tiles.of(t).codes + (quad + i) * kStride + Tiles::offset(t);
        dots[group][t] = simd::dot_unsigned(dots[group][t], codes[i], Input::load(inputs),
                                            codes[i + 1], Input::load(inputs + kStride));
      }
    }
    if (quad % kQuads + 4 == kQuads) add_group(group);
  }

  // A dot fits int16: of its two words the upper one meets a zero.
  [[gnu::always_inline]] void add_group(int group) {
    const Int low_word = scale[group] & simd::broadcast(0xffff);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const auto& tile = tiles.of(t);
      if constexpr (kind.group_size == 32) {
        const Int code = Input::load(tile.scale_codes + group * kStride + Tiles::offset(t));
        totals[t] =
            simd::dot_words(totals[t], dots[group][t], simd::multiply_words(low_word, code));
      } else if (group % 2 == 0) {
        dots[group][t] = simd::dot_words(Int{}, dots[group][t], low_word);
      } else {
        const Int exact = simd::dot_words(dots[group - 1][t], dots[group][t], low_word);
        const Float scales = Input::load(tile.scale + group / 2 * kStride + Tiles::offset(t));
        totals[t] = simd::fma(simd::to_float(exact), scales, totals[t]);
      }
    }
  }

  // The share of this segment in the result of token t.
  [[gnu::always_inline]] Float share(int t) const {
    Int minimums = {};
    if constexpr (kind.has_minimum) {
#pragma GCC unroll 8
      for (int i = 0; i < kGroups / 2; ++i) {
        const std::int32_t* sums = tiles.of(t).sums + i * kStride + Tiles::offset(t);
        minimums = simd::dot_words(minimums, two_words(minimum[2 * i], minimum[2 * i + 1]),
                                   Input::load(sums));
      }
    }
    return finish<kind, Input>(tiles.of(t), Tiles::offset(t), factor, -minimum_factor, totals[t],
                               minimums);
  }
};

// sums[t] += one segment of kLanes rows whose codes were unpacked before, for more tokens than
// registers hold.
template <ScaledKind kind, int width>
void multiply_lanes(const simd::RowLanes& rows, const ScaledTile<kind.group_size, width>& input,
                    float* sums, std::int64_t stride) {
  using Dots = DotLanes<kind, SharedTiles<kind.group_size, width>>;
  Dots lanes({&input});
  std::copy_n(rows.scale, Dots::kGroups, lanes.scale);
  if constexpr (kind.has_minimum) {
    std::copy_n(rows.minimum, Dots::kGroups, lanes.minimum);
    lanes.minimum_factor = rows.minimum_factor;
  }
  lanes.factor = rows.factor;
#pragma GCC unroll 16
  for (int quad = 0; quad < kSegment / 4; quad += 4) {
    const Int codes[4] = {rows.codes[quad], rows.codes[quad + 1], rows.codes[quad + 2],
                          rows.codes[quad + 3]};
    lanes.put(quad, codes);
  }
  for (int t = 0; t < width; ++t) add_to(sums + t * stride, lanes.share(t));
}

// ---- many tokens: two groups side by side ----

// kLanes rows x 256 columns; a pair of lanes holds four codes of each of two groups of one row, so
// that both groups' dots are scaled and added by one instruction.
struct alignas(64) PairedPanel {
  Int codes[kSegment / 4];  // [pair of groups][quad][lower or upper rows of each 128 bits]
  Int scale[8];             // two words
  Int minimum[8];           // two words
  Float factor;
  Float minus_minimum_factor;
};

template <ScaledKind kind>
void pair_groups(const simd::RowLanes& rows, PairedPanel& panel) {
  constexpr int kQuads = kind.group_size / 4;
  constexpr int kPairs = 32 / kQuads;
  for (int pair = 0; pair < kPairs; ++pair) {
    const Int* first = rows.codes + 2 * pair * kQuads;
    for (int quad = 0; quad < kQuads; ++quad) {
      Int* codes = panel.codes + 2 * (pair * kQuads + quad);
      codes[0] = simd::interleave_low(first[quad], first[kQuads + quad]);
      codes[1] = simd::interleave_high(first[quad], first[kQuads + quad]);
    }
    panel.scale[pair] = two_words(rows.scale[2 * pair], rows.scale[2 * pair + 1]);
    if constexpr (kind.has_minimum) {
      panel.minimum[pair] = two_words(rows.minimum[2 * pair], rows.minimum[2 * pair + 1]);
    }
  }
  panel.factor = rows.factor;
  if constexpr (kind.has_minimum) panel.minus_minimum_factor = -rows.minimum_factor;
}

inline Int broadcast_two(const std::int32_t* words) {
  std::int64_t both;
  std::memcpy(&both, words, sizeof(both));
  return simd::broadcast_two(both);
}

// sums[t] += one segment of kLanes rows.
template <ScaledKind kind, int width>
void multiply_paired(const PairedPanel& panel, const ScaledTile<kind.group_size, width>& input,
                     float* sums, std::int64_t stride) {
  constexpr int kQuads = kind.group_size / 4;
  typename TotalOf<kind.group_size>::Type totals[width] = {};
#pragma GCC unroll 1
  for (int pair = 0; pair < 32 / kQuads; ++pair) {
    Int low[width];
    Int high[width];
#pragma GCC unroll 8
    for (int t = 0; t < width; ++t) {
      low[t] = kind.has_zero_point ? broadcast_two(input.starts + 2 * (pair * width + t)) : Int{};
      high[t] = low[t];
    }
#pragma GCC unroll 8
    for (int i = pair * kQuads; i < (pair + 1) * kQuads; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < width; ++t) {
        const Int codes = broadcast_two(input.codes + 2 * (i * width + t));
        low[t] = simd::dot_unsigned(low[t], panel.codes[2 * i], codes);
        high[t] = simd::dot_unsigned(high[t], panel.codes[2 * i + 1], codes);
      }
    }
    const Int scale = panel.scale[pair];
#pragma GCC unroll 8
    for (int t = 0; t < width; ++t) {
      const Int dots = simd::pack_words(low[t], high[t]);
      if constexpr (kind.group_size == 32) {
        const Int both = simd::broadcast(input.scale_codes[pair * width + t]);
        totals[t] = simd::dot_words(totals[t], dots, simd::multiply_words(scale, both));
      } else {
        totals[t] = simd::fma(simd::to_float(simd::dot_words(Int{}, dots, scale)),
                              simd::broadcast(input.scale[pair * width + t]), totals[t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < width; ++t) {
    Int minimums = {};
    if constexpr (kind.has_minimum) {
#pragma GCC unroll 8
      for (int i = 0; i < 32 / kQuads; ++i) {
        minimums =
            simd::dot_words(minimums, panel.minimum[i], simd::broadcast(input.sums[i * width + t]));
      }
    }
    add_to(sums + t * stride,
           finish<kind, SharedInput>(input, t, panel.factor, panel.minus_minimum_factor, totals[t],
                                     minimums));
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
