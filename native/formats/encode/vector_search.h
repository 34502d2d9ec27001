// SPDX-License-Identifier: Apache-2.0
// Exhaustive search of a codebook of vectors, kLanes vectors at once, and of the scales under
// which its entries fit best. The meaning is src/lilliput/formats/vector_search.py; every operation
// and its order is the same, so that the bytes are the same.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "formats/codebooks.h"
#include "formats/encode/scale_search.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct ThreeLevels {
  static constexpr float kLevels[] = {8, 25, 43};
};
struct SteppedLevels {
  static constexpr float kLevels[] = {4, 12, 20, 28, 36, 44, 52, 62};
};
struct OddLevels {
  static constexpr float kLevels[] = {1, 3, 5, 7, 9, 11, 13, 15};
};
struct TernaryLevels {
  static constexpr float kLevels[] = {-1, 0, 1};
};

// A codebook prepared for the search; VectorTable in Python. Word: its columns are the bytes.
template <typename LevelsOf, const auto& grid>
struct CodebookTable {
  static constexpr int kEntries = static_cast<int>(grid.size());
  static constexpr int kColumns = sizeof(grid[0]);
  static constexpr int kHalf = kColumns / 2;
  static constexpr int kLevels = sizeof(LevelsOf::kLevels) / sizeof(float);
  static constexpr int kPatterns =
      kHalf == 4 ? kLevels * kLevels * kLevels * kLevels : kLevels * kLevels;
  static constexpr float level(int index) { return LevelsOf::kLevels[index]; }
  static constexpr float value(int entry, int column) {
    return static_cast<std::int8_t>(grid[entry] >> (8 * column) & 255);
  }
  // Pattern of each half: the levels' numbers as digits, first column first.
  static constexpr std::array<std::array<std::uint8_t, 2>, kEntries> kHalves = [] {
    std::array<std::array<std::uint8_t, 2>, kEntries> halves{};
    for (int entry = 0; entry < kEntries; ++entry) {
      for (int column = 0; column < kColumns; ++column) {
        int digit = 0;
        while (level(digit) != value(entry, column)) ++digit;
        auto& pattern = halves[entry][column / kHalf];
        pattern = static_cast<std::uint8_t>(pattern * kLevels + digit);
      }
    }
    return halves;
  }();
  static constexpr std::array<std::array<float, kColumns>, kEntries> kValues = [] {
    std::array<std::array<float, kColumns>, kEntries> values{};
    for (int entry = 0; entry < kEntries; ++entry) {
      for (int column = 0; column < kColumns; ++column)
        values[entry][column] = value(entry, column);
    }
    return values;
  }();
};

struct FoundEntry {
  Int index;
  Float score;
};

// out[pattern] of one half from the terms of its columns, joined pairwise.
template <typename Table, typename Join>
inline void half_patterns(const Float (*terms)[Table::kLevels], Float* out, Join&& join) {
  constexpr int n = Table::kLevels;
  if constexpr (Table::kHalf == 2) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) out[i * n + j] = join(terms[0][i], terms[1][j]);
    }
  } else {
    Float last[n * n];
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) last[i * n + j] = join(terms[2][i], terms[3][j]);
    }
    for (int i = 0; i < n * n; ++i) {
      const Float start = join(terms[0][i / n], terms[1][i % n]);
      for (int j = 0; j < n * n; ++j) out[i * n * n + j] = join(start, last[j]);
    }
  }
}

// Best entry of kLanes vectors y, w [columns]; flips: 1 where one column must take the other sign.
template <typename Table, bool with_flips>
inline FoundEntry best_entry(const Float* y, const Float* w, Float flips) {
  constexpr int n = Table::kLevels, half = Table::kHalf;
  Float sums[Table::kColumns][n], costs[with_flips ? Table::kColumns : 1][n];
  for (int column = 0; column < Table::kColumns; ++column) {
    const Float twice = y[column] + y[column];
    for (int i = 0; i < n; ++i) {
      const Float level = broadcast(Table::level(i));
      const Float weighted = w[column] * level;
      sums[column][i] = weighted * (level - twice);
      if constexpr (with_flips) costs[column][i] = weighted * ((twice + twice) * flips);
    }
  }
  Float patterns[2][Table::kPatterns], cheapest[2][with_flips ? Table::kPatterns : 1];
  for (int part = 0; part < 2; ++part) {
    half_patterns<Table>(sums + part * half, patterns[part],
                         [](Float a, Float b) { return a + b; });
    if constexpr (with_flips) half_patterns<Table>(costs + part * half, cheapest[part], lowest);
  }
  // Even and odd entries apart: each waits for its own last comparison only.
  const Float none = broadcast(std::numeric_limits<float>::infinity());
  FoundEntry best[2] = {{broadcast(0), none}, {broadcast(1), none}};
  for (int start = 0; start < Table::kEntries; start += 2) {
    for (int odd = 0; odd < 2; ++odd) {
      const int first = Table::kHalves[start + odd][0], second = Table::kHalves[start + odd][1];
      Float score = patterns[0][first] + patterns[1][second];
      if constexpr (with_flips) score = score + lowest(cheapest[0][first], cheapest[1][second]);
      const Int is_better = score < best[odd].score;
      best[odd].score = is_better ? score : best[odd].score;
      best[odd].index = is_better ? broadcast(start + odd) : best[odd].index;
    }
  }
  const Int is_second = (best[1].score < best[0].score) |
                        ((best[1].score == best[0].score) & (best[1].index < best[0].index));
  return {is_second ? best[1].index : best[0].index, is_second ? best[1].score : best[0].score};
}

// level[j] = column j of each lane's entry.
template <typename Table>
inline void entry_levels(Int index, Float* level) {
  alignas(64) std::int32_t entries[kLanes];
  simd::store_int(entries, index);
  alignas(64) float values[Table::kColumns][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int j = 0; j < Table::kColumns; ++j) values[j][lane] = Table::kValues[entries[lane]][j];
  }
  for (int j = 0; j < Table::kColumns; ++j) level[j] = simd::load(values[j]);
}

// kLanes vectors rounded: their codes, and the levels these stand for.
template <int unit>
struct RoundedVectors {
  Int codes;
  Float level[unit];
};

// Entries of two codebook vectors under one sign mask of even parity.
template <typename Table>
inline void best_pair(const Float* magnitude, const Float* w, Float odd, Int (&indices)[2]) {
  constexpr int width = Table::kColumns;
  FoundEntry plain[2], flipped[2];
  for (int part = 0; part < 2; ++part) {
    plain[part] = best_entry<Table, false>(magnitude + part * width, w + part * width, odd);
    flipped[part] = best_entry<Table, true>(magnitude + part * width, w + part * width, odd);
  }
  const Int is_first = flipped[0].score + plain[1].score <= plain[0].score + flipped[1].score;
  indices[0] = is_first ? flipped[0].index : plain[0].index;
  indices[1] = is_first ? plain[1].index : flipped[1].index;
}

// Entries with signs; round_signed in Python.
template <typename Table, int unit, int index_bits, bool is_even>
inline RoundedVectors<unit> round_signed(const Float* y, const Float* w) {
  constexpr int parts = unit / Table::kColumns;
  Float magnitude[unit];
  Int is_negative[unit];
  Int count = broadcast(0);
  for (int j = 0; j < unit; ++j) {
    magnitude[j] = simd::absolute(y[j]);
    is_negative[j] = y[j] < simd::zero();
    count = count - is_negative[j];
  }
  const Float odd = simd::to_float(count & broadcast(1));
  Int indices[parts];
  if constexpr (parts == 1) {
    indices[0] = best_entry<Table, is_even>(magnitude, w, odd).index;
  } else {
    static_assert(is_even && parts == 2);
    best_pair<Table>(magnitude, w, odd, indices);
  }
  RoundedVectors<unit> rounded;
  for (int part = 0; part < parts; ++part)
    entry_levels<Table>(indices[part], rounded.level + part * Table::kColumns);
  if constexpr (is_even) {
    // The first column of least cost changes its sign where the count is odd.
    Float costs[unit];
    for (int j = 0; j < unit; ++j) costs[j] = (w[j] * rounded.level[j]) * magnitude[j];
    Float least = costs[0];
    for (int j = 1; j < unit; ++j) least = lowest(least, costs[j]);
    Int is_open = odd > simd::zero();
    for (int j = 0; j < unit; ++j) {
      const Int is_flipped = (costs[j] == least) & is_open;
      is_negative[j] ^= is_flipped;
      is_open &= ~is_flipped;
    }
  }
  Int mask = broadcast(0);
  for (int j = 0; j < unit; ++j) {
    mask |= is_negative[j] & broadcast(1 << j);
    rounded.level[j] = is_negative[j] ? -rounded.level[j] : rounded.level[j];
  }
  if constexpr (is_even) mask &= broadcast(127);
  rounded.codes = mask << (index_bits * parts);
  for (int part = 0; part < parts; ++part) rounded.codes |= indices[part] << (index_bits * part);
  return rounded;
}

// Entries plus a shift; score: comparable between shifts. round_shifted in Python.
template <typename Table>
inline RoundedVectors<8> round_shifted(const Float* y, const Float* w, Float shift, Float& score) {
  Float moved[8], left_out[8];
  for (int j = 0; j < 8; ++j) {
    moved[j] = y[j] - shift;
    left_out[j] = w[j] * (shift * (shift - (y[j] + y[j])));
  }
  const FoundEntry found = best_entry<Table, false>(moved, w, simd::zero());
  score = found.score + ordered_sum(left_out);
  RoundedVectors<8> rounded;
  rounded.codes = found.index;
  entry_levels<Table>(found.index, rounded.level);
  for (Float& level : rounded.level) level = level + shift;
  return rounded;
}

// What the search of a format needs to know; the classes of the same meaning are in
// codebook_vectors.py. `round` rounds kLanes vectors, under their groups' choices where it has any.
template <int group, int last, int reach, int factor_exponent>
struct VectorSearch {
  static constexpr int kGroup = group, kLastCode = last, kCodeReach = reach, kChoices = 1;
  static constexpr float kFactor =
      factor_exponent < 0 ? 1.0f / (1 << -factor_exponent) : 1.0f * (1 << factor_exponent);
};

template <typename TableOf, int unit, int index_bits, bool is_even, int group, int factor_exponent>
struct SignedVectorSearch : VectorSearch<group, 15, 2, factor_exponent> {
  using Kind = SignedVectorSearch;
  static constexpr int kUnit = unit;
  static RoundedVectors<unit> round(const Float* y, const Float* w, Float) {
    return round_signed<TableOf, unit, index_bits, is_even>(y, w);
  }
};

using TernaryTable = CodebookTable<TernaryLevels, kIq1Grid>;

// IQ1_S: a group chooses its shift.
template <int group>
struct GroupShiftSearch : VectorSearch<group, 7, 7, 1> {
  using Kind = GroupShiftSearch;
  static constexpr int kUnit = 8, kChoices = 2;
  static RoundedVectors<8> round(const Float* y, const Float* w, Float choice) {
    Float score;
    return round_shifted<TernaryTable>(y, w, broadcast(0.125f) - broadcast(0.25f) * choice, score);
  }
};

// IQ1_M: every vector chooses its shift.
template <int group>
struct VectorShiftSearch : VectorSearch<group, 7, 7, 1> {
  using Kind = VectorShiftSearch;
  static constexpr int kUnit = 8;
  static RoundedVectors<8> round(const Float* y, const Float* w, Float) {
    Float plus_score, minus_score;
    RoundedVectors<8> plus = round_shifted<TernaryTable>(y, w, broadcast(0.125f), plus_score);
    const RoundedVectors<8> minus =
        round_shifted<TernaryTable>(y, w, broadcast(-0.125f), minus_score);
    const Int is_minus = minus_score < plus_score;
    plus.codes = is_minus ? minus.codes | broadcast(1 << 11) : plus.codes;
    for (int j = 0; j < 8; ++j) plus.level[j] = is_minus ? minus.level[j] : plus.level[j];
    return plus;
  }
};

// Levels of kLanes groups in units of their scale; codes [group / unit] too, unless null.
template <typename S>
inline void round_groups(const GroupLanes<S::kGroup>& lanes, Float inverse, Float choice,
                         Float* level, Int* codes) {
  for (int start = 0; start < S::kGroup; start += S::kUnit) {
    Float y[S::kUnit];
    for (int j = 0; j < S::kUnit; ++j) y[j] = lanes.x[start + j] * inverse;
    const auto rounded = S::round(y, lanes.w + start, choice);
    for (int j = 0; j < S::kUnit; ++j) level[start + j] = rounded.level[j];
    if (codes != nullptr) codes[start / S::kUnit] = rounded.codes;
  }
}

// Sums of w * level * x and of w * level^2 over each group.
struct LevelSums {
  Float along, across;
};
template <int group>
inline LevelSums level_sums(const GroupLanes<group>& lanes, const Float* level) {
  OrderedSum along, across;
  for_each_term<group>([&]<bool is_first>(int j, int slot) {
    const Float weighted = lanes.w[j] * level[j];
    along.add<is_first>(slot, weighted * lanes.x[j]);
    across.add<is_first>(slot, weighted * level[j]);
  });
  return {along.total(), across.total()};
}

// search_positive_scale in Python.
template <typename S, int n_anchors>
inline ScaleFit search_positive_scale(const GroupLanes<S::kGroup>& lanes,
                                      const float (&anchors)[n_anchors]) {
  Float peak = simd::absolute(lanes.x[0]);
  for (int j = 1; j < S::kGroup; ++j) peak = highest(peak, simd::absolute(lanes.x[j]));
  peak = nonzero(peak);
  Float best = broadcast(-1.0f);
  ScaleFit fit{simd::zero(), simd::zero()};
  for (int step = 0; step < n_anchors + kRefinements; ++step) {
    const Float inverse =
        step < n_anchors ? broadcast(anchors[step]) / peak : reciprocal(fit.scale);
    for (int choice = 0; choice < S::kChoices; ++choice) {
      Float level[S::kGroup];
      round_groups<S>(lanes, inverse, broadcast(static_cast<float>(choice)), level, nullptr);
      const LevelSums sums = level_sums(lanes, level);
      const Float candidate =
          sums.along / (sums.across > simd::zero() ? sums.across : broadcast(1.0f));
      const Float gain = sums.along * candidate;
      const Int is_better = is_clearly_above(gain, best) & (candidate >= simd::zero());
      best = is_better ? gain : best;
      fit.scale = is_better ? candidate : fit.scale;
      fit.curvature = is_better ? sums.across : fit.curvature;
    }
  }
  return fit;
}

// Scale code and choice of each group, and the levels they lead to.
template <int group>
struct ChosenCodes {
  Float code, choice;
  Float level[group];
};

// _search_groups in Python. scale: the blocks' own; wanted: the groups' own best scales.
template <typename S>
inline ChosenCodes<S::kGroup> search_groups(const GroupLanes<S::kGroup>& lanes, Float scale,
                                            Float wanted) {
  constexpr bool tries_all = S::kCodeReach >= S::kLastCode;
  constexpr int n_codes = tries_all ? S::kLastCode + 1 : 2 * S::kCodeReach + 1;
  const Float half = broadcast(0.5f), factor = broadcast(S::kFactor);
  const Float nearest = rounded_between(
      (wanted * broadcast(1.0f / S::kFactor)) * reciprocal(scale) - half, 0, S::kLastCode);
  ChosenCodes<S::kGroup> chosen{nearest, simd::zero(), {}};
  for (Float& level : chosen.level) level = simd::zero();
  Float best = broadcast(std::numeric_limits<float>::infinity());
  for (int number = 0; number < n_codes; ++number) {
    // 0, -1, 1, -2, 2 from the nearest; or every code.
    const int distance = number % 2 == 1 ? -(number + 1) / 2 : number / 2;
    const Float code =
        tries_all ? broadcast(static_cast<float>(number))
                  : clipped(nearest + broadcast(static_cast<float>(distance)), 0, S::kLastCode);
    const Float step = (scale * (code + half)) * factor;
    const Float inverse = reciprocal(step);
    for (int choice = 0; choice < S::kChoices; ++choice) {
      Float level[S::kGroup];
      const Float this_choice = broadcast(static_cast<float>(choice));
      round_groups<S>(lanes, inverse, this_choice, level, nullptr);
      OrderedSum sum;
      for_each_term<S::kGroup>([&]<bool is_first>(int j, int slot) {
        const Float residual = lanes.x[j] - step * level[j];
        sum.add<is_first>(slot, (lanes.w[j] * residual) * residual);
      });
      const Float error = sum.total();
      const Int is_better = error < best;
      best = is_better ? error : best;
      chosen.code = is_better ? code : chosen.code;
      chosen.choice = is_better ? this_choice : chosen.choice;
      for (int j = 0; j < S::kGroup; ++j) chosen.level[j] = is_better ? level[j] : chosen.level[j];
    }
  }
  return chosen;
}

// search_outer_scale for the multiples code + 1/2: values of kLanes blocks' groups, in units of the
// factor. The peak of a block of zeros stays 0.
template <int last_code, int groups>
inline Float search_odd_halves_scale(const BlockLanes<groups>& lanes) {
  const Float half = broadcast(0.5f);
  const auto nearest = [half](Float value) {
    return rounded_between(value - half, 0, last_code) + half;
  };
  Float peak = lanes.values[0];
  for (int g = 1; g < groups; ++g) peak = highest(peak, lanes.values[g]);
  Float best = broadcast(std::numeric_limits<float>::infinity());
  Float outer = simd::zero();
  for (int k = 0; k < 25; ++k) {
    const auto anchor = static_cast<float>((last_code + 1.0) * (1.0 - k / 48.0));
    try_outer_scale(lanes, peak, anchor, nearest, best, outer);
  }
  return outer;
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
