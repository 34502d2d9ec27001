// SPDX-License-Identifier: Apache-2.0
// The innermost products of formats with integer group scales. Three kernels with the same results,
// bit for bit: sums of a segment are exact integers (groups of 32) or exact up to 64 columns and
// added in one order (groups of 16).
#pragma once

#include "kernels/isa/scaled_input.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// What the product must know of a format; many share one.
struct ScaledKind {
  int group_size;
  bool has_zero_point;
  bool has_minimum;
  bool scales_dots = false;  // scaled_input.h
  int dropped_bits = 0;
};
// Spelled out where it is used, because GCC 12 does not survive an alias of it.
template <ScaledKind kind>
inline constexpr bool kInputHasStarts = kind.group_size == 16 || kind.scales_dots;

// What is left of a segment once its integers are summed: its share of the result.
template <ScaledKind kind, int tile>
inline Float finish(const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input, int t,
                    Float factor, Float minus_minimum_factor, Int total, Int minimums) {
  Float product = simd::to_float(total) * factor;
  if constexpr (kind.has_minimum) {
    const Int shifted = minimums << simd::broadcast(input.sum_shift[t]);
    product = simd::fma(simd::to_float(shifted), minus_minimum_factor, product);
  }
  return product * simd::broadcast(input.scale[t]);
}

// Groups of 16: the total carries the input's scales already.
template <ScaledKind kind, int tile>
inline Float finish(const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input, int t,
                    Float factor, Float minus_minimum_factor, Float total, Int minimums) {
  Float result = total * factor;
  if constexpr (kind.has_minimum) {
    const Float product = simd::to_float(minimums) * minus_minimum_factor;
    result = simd::fma(product, simd::broadcast(input.sum_scale[t]), result);
  }
  return result;
}

// Float scales of 8 groups as words of 13 bits and a sign with one factor, a power of two, which is
// returned. Exact for scales of 11 bits (fp16) within 4 times of one another, otherwise off by at most
// 2^-14 of the largest.
[[gnu::always_inline]] inline Float round_scales(const Float (&scale)[8], Int* words) {
  // Eight dots of int16 by as many scales, up to 2^13, must fit int32.
  constexpr int kBits = 13;
  constexpr int kMantissa = 23;
  // Magnitudes of floats are ordered as integers are, NaN last.
  Int largest = {};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const Int magnitude = (Int)simd::absolute(scale[i]);
    largest = largest > magnitude ? largest : magnitude;
  }
  // Of tiny scales all are rounded as if one were 2^-100.
  const Int least = simd::broadcast(27 << kMantissa);
  Int exponent = largest & simd::broadcast(0x7f800000);
  exponent = exponent > least ? exponent : least;
  const Float inverse = (Float)(simd::broadcast((254 + kBits - 1) << kMantissa) - exponent);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) words[i] = simd::round_to_int(scale[i] * inverse);
  const auto factor = (Float)(exponent - simd::broadcast((kBits - 1) << kMantissa));
  return simd::fma((Float)largest, simd::zero(), factor);  // NaN if a scale is none or infinite
}

// Lanes for formats whose scales are floats, which they unpack before the first codes.
template <typename Lanes>
class RoundedScales : public Lanes {
 public:
  Float scale[8];

  using Lanes::Lanes;

  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    if (quad == 0) Lanes::factor = round_scales(scale, Lanes::scale);
    Lanes::put(quad, codes);
  }
};

inline void add_to(float* sum, Float share) { simd::store(sum, simd::load(sum) + share); }

// ---- few tokens: codes as they are unpacked ----

// The total of a segment: integers to its end, or floats to which the integers of 64 columns are
// added.
template <int group_size>
class Total {
 public:
  void add(Int dots, Int scales) { value_ = simd::dot_words(value_, dots, scales); }
  void end_columns(const float*) {}
  Int value() const { return value_; }

 private:
  Int value_ = {};
};
template <>
class Total<16> {
 public:
  void add(Int dots, Int scales) { exact_ = simd::dot_words(exact_, dots, scales); }
  void end_columns(const float* scale) {
    value_ = simd::fma(simd::to_float(exact_), simd::broadcast(*scale), value_);
    exact_ = Int{};
  }
  Float value() const { return value_; }

 private:
  Int exact_ = {};
  Float value_ = simd::zero();
};

template <ScaledKind kind, int tile>
inline Int dot_minimums(const Int* pairs,
                        const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input,
                        int t) {
  Int sum = {};
  if constexpr (kind.has_minimum) {
#pragma GCC unroll 8
    for (int i = 0; i < kSegment / kind.group_size / 2; ++i) {
      sum = simd::dot_words(sum, pairs[i], simd::broadcast(input.sums[i * tile + t]));
    }
  }
  return sum;
}

// Parts of dots[t] = sum over one group of (code - zero point) * input, exact; fits int16.
template <ScaledKind kind, int tile>
inline void dot_group(const Int* codes,
                      const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input,
                      int group, Int (&dots)[tile]) {
  constexpr int kQuads = kind.group_size / 4;
#pragma GCC unroll 8
  for (int t = 0; t < tile; ++t) {
    dots[t] = kind.has_zero_point ? simd::broadcast(input.starts[group * tile + t]) : Int{};
  }
  // Counted from a constant: GCC 12 does not see two or four turns otherwise.
#pragma GCC unroll 4
  for (int i = 0; i < kQuads; i += 2) {
    const int quad = group * kQuads + i;
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      const std::int32_t* inputs = input.codes + quad * tile;
      dots[t] = simd::dot_parts(dots[t], codes[quad], simd::broadcast_one<tile>(inputs, t),
                                codes[quad + 1], simd::broadcast_one<tile>(inputs + tile, t));
    }
  }
}

// Scales become factors of parts of dots, minimums of two groups two words.
template <ScaledKind kind>
inline void finish_lanes(simd::RowLanes& rows) {
  constexpr int kGroups = kSegment / kind.group_size;
#pragma GCC unroll 16
  for (int i = 0; i < kGroups; ++i) rows.scale[i] = simd::part_factor(rows.scale[i]);
  if constexpr (kind.has_minimum) {
#pragma GCC unroll 8
    for (int i = 0; i < kGroups / 2; ++i) {
      rows.minimum[i] = simd::two_words(rows.minimum[2 * i], rows.minimum[2 * i + 1]);
    }
  }
}

// sums[t] += one segment of kLanes rows.
template <ScaledKind kind, int tile>
inline void multiply_lanes(const simd::RowLanes& rows,
                           const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input,
                           float* sums, std::int64_t stride) {
  constexpr int kPairs = kSegment / kind.group_size / 2;
  Total<kind.group_size> totals[tile];
#pragma GCC unroll 1
  for (int pair = 0; pair < kPairs; ++pair) {
    Int dots[2][tile];
    dot_group<kind>(rows.codes, input, 2 * pair, dots[0]);
    dot_group<kind>(rows.codes, input, 2 * pair + 1, dots[1]);
    const Int scale0 = rows.scale[2 * pair];
    const Int scale1 = rows.scale[2 * pair + 1];
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      if constexpr (kind.group_size == 32) {
        const std::int32_t* codes = input.scale_codes + 2 * pair * tile + t;
        const Int both0 = simd::multiply_words(scale0, simd::broadcast(codes[0]));
        const Int both1 = simd::multiply_words(scale1, simd::broadcast(codes[tile]));
        totals[t].add(dots[0][t], both0);
        totals[t].add(dots[1][t], both1);
      } else {
        totals[t].add(dots[0][t], scale0);
        totals[t].add(dots[1][t], scale1);
        if (pair % 2 == 1) totals[t].end_columns(input.scale + pair / 2 * tile + t);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < tile; ++t) {
    const Int minimum = dot_minimums<kind>(rows.minimum, input, t);
    const Float share =
        finish<kind>(input, t, rows.factor, -rows.minimum_factor, totals[t].value(), minimum);
    add_to(sums + t * stride, share);
  }
}

// ---- a tile of few tokens: codes are multiplied while they are unpacked ----

// Takes what `unpack_rows` gives in place of simd::RowLanes. The sums are those of multiply_lanes.
template <ScaledKind kind, int tile>
class LaneProduct {
 public:
  Int scale[16];
  Int minimum[16];
  Float factor;
  Float minimum_factor;

  explicit LaneProduct(const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input)
      : input_(input) {}

  // Groups come pair by pair, the quads of a group in order.
  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    const int group = quad / kQuads;
    Int(&dots)[tile] = dots_[group % 2];
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      if (quad % kQuads == 0) {
        dots[t] = kind.has_zero_point ? simd::broadcast(input_.starts[group * tile + t]) : Int{};
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
#pragma GCC unroll 8
      for (int t = 0; t < tile; ++t) {
        const std::int32_t* inputs = input_.codes + (quad + i) * tile;
        dots[t] = simd::dot_parts(dots[t], codes[i], simd::broadcast_one<tile>(inputs, t),
                                  codes[i + 1], simd::broadcast_one<tile>(inputs + tile, t));
      }
    }
    if (group % 2 == 1 && quad % kQuads == kQuads - 4) finish_pair(group / 2);
  }

  [[gnu::always_inline]] void add_to_sums(float* sums) const {
    Int minimums[kPairs];
    if constexpr (kind.has_minimum) {
#pragma GCC unroll 8
      for (int i = 0; i < kPairs; ++i)
        minimums[i] = simd::two_words(minimum[2 * i], minimum[2 * i + 1]);
    }
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      const Int smallest = dot_minimums<kind>(minimums, input_, t);
      Float minus_minimum_factor = simd::zero();
      if constexpr (kind.has_minimum) minus_minimum_factor = -minimum_factor;
      add_to(sums + t * kLanes,
             finish<kind>(input_, t, factor, minus_minimum_factor, totals_[t].value(), smallest));
    }
  }

 private:
  static constexpr int kQuads = kind.group_size / 4;
  static constexpr int kPairs = kSegment / kind.group_size / 2;

  [[gnu::always_inline]] void finish_pair(int pair) {
    const Int scale0 = simd::part_factor(scale[2 * pair]);
    const Int scale1 = simd::part_factor(scale[2 * pair + 1]);
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      if constexpr (kind.scales_dots) {
        const std::int32_t* fractions = input_.scale_codes + 2 * pair * tile + t;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          // Of the two words the upper one becomes zero.
          const Int dots = dots_[i][t] >> kind.dropped_bits;
          totals_[t].add(simd::multiply_fractions(dots, simd::broadcast(fractions[i * tile])),
                         scale[2 * pair + i]);
        }
      } else if constexpr (kind.group_size == 32) {
        const std::int32_t* codes = input_.scale_codes + 2 * pair * tile + t;
        const Int both0 = simd::multiply_words(scale0, simd::broadcast(codes[0]));
        const Int both1 = simd::multiply_words(scale1, simd::broadcast(codes[tile]));
        totals_[t].add(dots_[0][t], both0);
        totals_[t].add(dots_[1][t], both1);
      } else {
        totals_[t].add(dots_[0][t], scale0);
        totals_[t].add(dots_[1][t], scale1);
        if (pair % 2 == 1) totals_[t].end_columns(input_.scale + pair / 2 * tile + t);
      }
    }
  }

  const ScaledTile<kind.group_size, tile, kInputHasStarts<kind>>& input_;
  Int dots_[2][tile];
  Total<kind.group_size> totals_[tile];
};

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

// Takes what `unpack_rows` gives in place of simd::RowLanes.
template <ScaledKind kind>
class PairingLanes {
 public:
  Int scale[16];
  Int minimum[16];
  Float factor;
  Float minimum_factor;

  explicit PairingLanes(PairedPanel& panel) : panel_(panel) {}

  // The quads of a group, then those of the next, or both by turns.
  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    const int group = quad / kQuads;
    Int* to = panel_.codes + 2 * (group / 2 * kQuads + quad % kQuads);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Int& first = first_[quad % kQuads + i];
      if (group % 2 == 0) {
        first = codes[i];
      } else {
        to[2 * i] = simd::interleave_low(first, codes[i]);
        to[2 * i + 1] = simd::interleave_high(first, codes[i]);
      }
    }
  }

  [[gnu::always_inline]] void finish() {
#pragma GCC unroll 8
    for (int pair = 0; pair < kSegment / kind.group_size / 2; ++pair) {
      panel_.scale[pair] = simd::two_words(scale[2 * pair], scale[2 * pair + 1]);
      if constexpr (kind.has_minimum) {
        panel_.minimum[pair] = simd::two_words(minimum[2 * pair], minimum[2 * pair + 1]);
      }
    }
    panel_.factor = factor;
    if constexpr (kind.has_minimum) panel_.minus_minimum_factor = -minimum_factor;
  }

 private:
  static constexpr int kQuads = kind.group_size / 4;

  PairedPanel& panel_;
  Int first_[kQuads];
};

inline Int broadcast_two(const std::int32_t* words) {
  std::int64_t both;
  std::memcpy(&both, words, sizeof(both));
  return simd::broadcast_two(both);
}

// sums[t] += one segment of kLanes rows.
template <ScaledKind kind>
void multiply_paired(const PairedPanel& panel,
                     const ScaledTile<kind.group_size, kScaledTile, kInputHasStarts<kind>>& input,
                     float* sums, std::int64_t stride) {
  constexpr int kQuads = kind.group_size / 4;
  Total<kind.group_size> totals[kScaledTile];
#pragma GCC unroll 1
  for (int pair = 0; pair < 32 / kQuads; ++pair) {
    Int low[kScaledTile];
    Int high[kScaledTile];
#pragma GCC unroll 8
    for (int t = 0; t < kScaledTile; ++t) {
      low[t] =
          kind.has_zero_point ? broadcast_two(input.starts + 2 * (pair * kScaledTile + t)) : Int{};
      high[t] = low[t];
    }
#pragma GCC unroll 8
    for (int i = pair * kQuads; i < (pair + 1) * kQuads; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < kScaledTile; ++t) {
        const Int codes = broadcast_two(input.codes + 2 * (i * kScaledTile + t));
        low[t] = simd::dot_unsigned(low[t], panel.codes[2 * i], codes);
        high[t] = simd::dot_unsigned(high[t], panel.codes[2 * i + 1], codes);
      }
    }
    const Int scale = panel.scale[pair];
#pragma GCC unroll 8
    for (int t = 0; t < kScaledTile; ++t) {
      if constexpr (kind.dropped_bits > 0) {
        low[t] = low[t] >> kind.dropped_bits;
        high[t] = high[t] >> kind.dropped_bits;
      }
      const Int dots = simd::pack_words(low[t], high[t]);
      if constexpr (kind.scales_dots) {
        const Int fractions = simd::broadcast(input.scale_codes[pair * kScaledTile + t]);
        totals[t].add(simd::multiply_fractions(dots, fractions), scale);
      } else if constexpr (kind.group_size == 32) {
        const Int both = simd::broadcast(input.scale_codes[pair * kScaledTile + t]);
        totals[t].add(dots, simd::multiply_words(scale, both));
      } else {
        totals[t].add(dots, scale);
        if (pair % 2 == 1) totals[t].end_columns(input.scale + pair / 2 * kScaledTile + t);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kScaledTile; ++t) {
    const Int minimum = dot_minimums<kind>(panel.minimum, input, t);
    add_to(sums + t * stride, finish<kind>(input, t, panel.factor, panel.minus_minimum_factor,
                                           totals[t].value(), minimum));
  }
}

// ---- many tokens: scales folded into codes ----

// kLanes rows x 256 columns, where the product of a scale and a code fits a byte: what remains to be
// done is a plain integer product.
struct alignas(64) FoldedPanel {
  Int codes[kSegment / 4];  // scale * (code - zero point) - least product, unsigned
  Int minimum[8];           // two words
  Float factor;
  Float minus_minimum_factor;
};

// Takes what `unpack_rows` gives in place of simd::RowLanes: scales first.
template <ScaledGrid grid, bool has_minimum>
class FoldingLanes {
 public:
  Int scale[16];
  Int minimum[16];
  Float factor;
  Float minimum_factor;

  explicit FoldingLanes(FoldedPanel& panel) : panel_(panel) {}

  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    static_assert(grid.group_size == 16);
    const Int low_bytes = simd::broadcast(0x00ff00ff);
    const Int group_scale = scale[quad / 4];
    const Int words = simd::two_words(group_scale, group_scale);
    // The same for every code, modulo 256.
    Int start = simd::broadcast(-grid.least_product) - group_scale * grid.zero_point;
    start = start & simd::broadcast(0xff);
    start = start | (start << 8);
    start = start | (start << 16);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int even = codes[i] & low_bytes;
      const Int products = (simd::multiply_words(even, words) & low_bytes) |
                           (simd::multiply_words(codes[i] ^ even, words) & ~low_bytes);
      panel_.codes[quad + i] = simd::add_bytes(products, start);
    }
  }

  [[gnu::always_inline]] void finish() {
    panel_.factor = factor;
    if constexpr (has_minimum) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        panel_.minimum[i] = simd::two_words(minimum[2 * i], minimum[2 * i + 1]);
      }
      panel_.minus_minimum_factor = -minimum_factor;
    }
  }

 private:
  FoldedPanel& panel_;
};

inline constexpr int kFoldedTokens = 4;
template <int n_panels, typename Body>
[[gnu::always_inline]] inline void for_each(Body body) {
#pragma GCC unroll 4
  for (int t = 0; t < kFoldedTokens; ++t) {
#pragma GCC unroll 2
    for (int panel = 0; panel < n_panels; ++panel) body(panel, t);
  }
}

// sums[t] += one segment of n_panels * kLanes rows, for kFoldedTokens from `token` on.
template <ScaledKind kind, int n_panels>
void multiply_folded(const FoldedPanel* panels, const ScaledTile<16>& input, int token, float* sums,
                     std::int64_t stride) {
  // Of two groups; quads of both lie side by side.
  constexpr int kQuads = 32 / 4;
  constexpr int kPairs = kExactColumns / 32;
  const auto of = [token](int row) { return row * kScaledTile + token; };
  Float totals[n_panels][kFoldedTokens] = {};
  Int minimums[n_panels][kFoldedTokens] = {};
#pragma GCC unroll 1
  for (int part = 0; part < kSegment / kExactColumns; ++part) {
    Int dots[n_panels][kFoldedTokens];
    for_each<n_panels>([&](int panel, int t) {
      dots[panel][t] = kind.has_zero_point ? simd::broadcast(input.starts[of(part) + t]) : Int{};
    });
    for (int pair = part * kPairs; pair < (part + 1) * kPairs; ++pair) {
      const std::int32_t* codes = input.codes + 2 * (pair * kScaledTile * kQuads / 2 + token);
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad) {
        for_each<n_panels>([&](int panel, int t) {
          const int lane = 2 * (quad % 4 * kScaledTile + t) + quad / 4;
          dots[panel][t] =
              simd::dot_unsigned(dots[panel][t], panels[panel].codes[pair * kQuads + quad],
                                 simd::broadcast(codes[lane]));
        });
      }
    }
    if constexpr (kind.has_minimum) {
#pragma GCC unroll 2
      for (int pair = part * kPairs; pair < (part + 1) * kPairs; ++pair) {
        for_each<n_panels>([&](int panel, int t) {
          minimums[panel][t] = simd::dot_words(minimums[panel][t], panels[panel].minimum[pair],
                                               simd::broadcast(input.sums[of(pair) + t]));
        });
      }
    }
    for_each<n_panels>([&](int panel, int t) {
      totals[panel][t] = simd::fma(simd::to_float(dots[panel][t]),
                                   simd::broadcast(input.scale[of(part) + t]), totals[panel][t]);
    });
  }
  for_each<n_panels>([&](int panel, int t) {
    const FoldedPanel& rows = panels[panel];
    add_to(sums + t * stride + panel * kLanes,
           finish<kind>(input, token + t, rows.factor, rows.minus_minimum_factor, totals[panel][t],
                        minimums[panel][t]));
  });
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
