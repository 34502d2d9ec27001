// SPDX-License-Identifier: Apache-2.0
// Nearest codebook vectors under a full metric, kLanes vectors at once. The algorithm is that of
// src/lilliput/formats/vector_metric.py; sums run in another order, so that a near tie may fall to
// the other side.
#pragma once

#include <cstdint>
#include <limits>

#include "formats/encode/vector_search.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

inline constexpr int kStarts = 8;  // sign masks that differ in their lowest three bits

// M of (y - q)^T M (y - q), the same for all vectors.
template <int unit>
struct Metric {
  float m[unit][unit];
};

// Scores a^2 q_aa - 2 a b_a + the same of the next column + 2 a c q_ac, for all levels a, c of
// columns o and o + 1.
template <typename Table>
inline void pair_scores(const Float (&q)[Table::kColumns][Table::kColumns], const Float* linear,
                        int o, Float* out) {
  constexpr int n = Table::kLevels;
  Float first[n], second[n];
  for (int i = 0; i < n; ++i) {
    const Float level = broadcast(Table::level(i)), two = broadcast(2.0f);
    first[i] = level * simd::fma(q[o][o], level, -(two * linear[o]));
    second[i] = level * simd::fma(q[o + 1][o + 1], level, -(two * linear[o + 1]));
  }
  for (int i = 0; i < n; ++i) {
    const Float joint = q[o][o + 1] * broadcast(2.0f * Table::level(i));
    for (int j = 0; j < n; ++j)
      out[i * n + j] = simd::fma(joint, broadcast(Table::level(j)), first[i] + second[j]);
  }
}

// Scores of all patterns of the half that starts at column o.
template <typename Table>
inline void half_scores(const Float (&q)[Table::kColumns][Table::kColumns], const Float* linear,
                        int o, Float* out) {
  constexpr int n = Table::kLevels;
  if constexpr (Table::kHalf == 2) {
    pair_scores<Table>(q, linear, o, out);
  } else {
    Float early[n * n], late[n * n];
    pair_scores<Table>(q, linear, o, early);
    pair_scores<Table>(q, linear, o + 2, late);
    for (int i = 0; i < n * n; ++i) {
      const Float a = broadcast(2.0f * Table::level(i / n));
      const Float b = broadcast(2.0f * Table::level(i % n));
      const Float third = simd::fma(q[o][o + 2], a, q[o + 1][o + 2] * b);
      const Float fourth = simd::fma(q[o][o + 3], a, q[o + 1][o + 3] * b);
      for (int j = 0; j < n * n; ++j) {
        const Float apart = simd::fma(third, broadcast(Table::level(j / n)), early[i] + late[j]);
        out[i * n * n + j] = simd::fma(fourth, broadcast(Table::level(j % n)), apart);
      }
    }
  }
}

// Entry g of least g^T Q g - 2 b^T g, and that score.
template <typename Table>
inline FoundEntry best_entry_under_metric(const Float (&q)[Table::kColumns][Table::kColumns],
                                          const Float* linear) {
  constexpr int half = Table::kHalf, n = Table::kLevels;
  Float scores[2][Table::kPatterns], joint[Table::kPatterns][half];
  for (int part = 0; part < 2; ++part) half_scores<Table>(q, linear, part * half, scores[part]);
  for (int pattern = 0; pattern < Table::kPatterns; ++pattern) {
    for (int k = 0; k < half; ++k) {
      Float sum = simd::zero();
      for (int i = half - 1, rest = pattern; i >= 0; --i, rest /= n)
        sum = simd::fma(q[i][half + k], broadcast(2.0f * Table::level(rest % n)), sum);
      joint[pattern][k] = sum;
    }
  }
  FoundEntry best{broadcast(0), broadcast(std::numeric_limits<float>::infinity())};
  for (int entry = 0; entry < Table::kEntries; ++entry) {
    const int first = Table::kHalves[entry][0], second = Table::kHalves[entry][1];
    Float score = scores[0][first] + scores[1][second];
    for (int k = 0; k < half; ++k)
      score = simd::fma(joint[first][k], broadcast(Table::kValues[entry][half + k]), score);
    const Int is_better = score < best.score;
    best.score = is_better ? score : best.score;
    best.index = is_better ? broadcast(entry) : best.index;
  }
  return best;
}

// Calls use(mask, score) with (y - s l)^T M (y - s l), less y^T M y, for every legal sign mask s.
template <int unit, bool is_even, typename Use>
inline void for_each_mask(const Float* level, const Metric<unit>& metric, const Float* pull,
                          Use&& use) {
  constexpr int half = unit / 2, patterns = 1 << half;
  Float joint[unit][unit], scores[2][patterns], own = simd::zero();
  for (int i = 0; i < unit; ++i) {
    own = simd::fma(level[i] * level[i], broadcast(metric.m[i][i]), own);
    for (int j = i + 1; j < unit; ++j)
      joint[i][j] = (level[i] * level[j]) * broadcast(2.0f * metric.m[i][j]);
  }
  const auto is_minus = [](int mask, int bit) { return (mask >> bit & 1) != 0; };
  for (int part = 0; part < 2; ++part) {
    const int o = part * half;
    for (int mask = 0; mask < patterns; ++mask) {
      Float score = part == 0 ? own : simd::zero();
      for (int i = 0; i < half; ++i) {
        const Float twice = (level[o + i] * pull[o + i]) * broadcast(2.0f);
        score = is_minus(mask, i) ? score + twice : score - twice;
        for (int j = i + 1; j < half; ++j) {
          const Float term = joint[o + i][o + j];
          score = is_minus(mask, i) != is_minus(mask, j) ? score - term : score + term;
        }
      }
      scores[part][mask] = score;
    }
  }
  for (int a = 0; a < patterns; ++a) {
    Float reach[half];  // of the first half's signs on each column of the second
    for (int k = 0; k < half; ++k) {
      reach[k] = simd::zero();
      for (int i = 0; i < half; ++i) {
        const Float term = joint[i][half + k];
        reach[k] = is_minus(a, i) ? reach[k] - term : reach[k] + term;
      }
    }
    for (int b = 0; b < patterns; ++b) {
      const int mask = a | b << half;
      if (is_even && __builtin_popcount(static_cast<unsigned>(mask)) % 2 != 0) continue;
      Float score = scores[0][a] + scores[1][b];
      for (int k = 0; k < half; ++k) score = is_minus(b, k) ? score - reach[k] : score + reach[k];
      use(mask, score);
    }
  }
}

// Entries under fixed signs, one part after the other; `level` holds those of all parts.
template <typename Table, int unit>
inline void choose_entries(const Float* sign, const Metric<unit>& metric, const Float* pull,
                           Float* level, Int* indices) {
  constexpr int width = Table::kColumns, parts = unit / width;
  for (int part = 0; part < parts; ++part) {
    const int o = part * width;
    Float q[width][width], linear[width];
    for (int i = 0; i < width; ++i) {
      for (int j = 0; j < width; ++j)
        q[i][j] = (sign[o + i] * sign[o + j]) * broadcast(metric.m[o + i][o + j]);
      linear[i] = sign[o + i] * pull[o + i];
      for (int j = 0; parts > 1 && j < width; ++j) {
        const int other = (1 - part) * width + j;
        linear[i] = linear[i] - (sign[o + i] * sign[other]) *
                                    (level[other] * broadcast(metric.m[o + i][other]));
      }
    }
    indices[part] = best_entry_under_metric<Table>(q, linear).index;
    entry_levels<Table>(indices[part], level + o);
  }
}

template <int unit>
inline void pulls(const Float* y, const Metric<unit>& metric, Float* pull) {
  for (int i = 0; i < unit; ++i) {
    pull[i] = simd::zero();
    for (int j = 0; j < unit; ++j) pull[i] = simd::fma(y[j], broadcast(metric.m[j][i]), pull[i]);
  }
}

// Codes as `round_signed` makes them.
template <typename Table, int unit, int index_bits, bool is_even>
inline Int nearest_signed(const Float* y, const Metric<unit>& metric) {
  constexpr int parts = unit / Table::kColumns;
  const Float none = broadcast(std::numeric_limits<float>::infinity());
  Float diagonal[unit], pull[unit], level[unit];
  for (int i = 0; i < unit; ++i) diagonal[i] = broadcast(metric.m[i][i]);
  pulls(y, metric, pull);
  const auto start = round_signed<Table, unit, index_bits, is_even>(y, diagonal);
  for (int i = 0; i < unit; ++i) level[i] = simd::absolute(start.level[i]);
  Int masks[kStarts];
  Float scores[kStarts];
  for (int c = 0; c < kStarts; ++c) masks[c] = broadcast(c), scores[c] = none;
  for_each_mask<unit, is_even>(level, metric, pull, [&](int mask, Float score) {
    const int c = mask % kStarts;
    const Int is_better = score < scores[c];
    scores[c] = is_better ? score : scores[c];
    masks[c] = is_better ? broadcast(mask) : masks[c];
  });
  Float best = none;
  Int codes = start.codes;
  for (const Int mask : masks) {
    Float sign[unit], own[unit];
    for (int i = 0; i < unit; ++i) {
      const Int is_minus = (mask & broadcast(1 << i)) != broadcast(0);
      sign[i] = is_minus ? broadcast(-1.0f) : broadcast(1.0f);
      own[i] = level[i];
    }
    Int indices[parts];
    choose_entries<Table>(sign, metric, pull, own, indices);
    Float score = none;
    Int found = broadcast(0);
    for_each_mask<unit, is_even>(own, metric, pull, [&](int other, Float error) {
      const Int is_better = error < score;
      score = is_better ? error : score;
      found = is_better ? broadcast(other) : found;
    });
    if constexpr (is_even) found &= broadcast(127);
    found = found << (index_bits * parts);
    for (int part = 0; part < parts; ++part) found |= indices[part] << (index_bits * part);
    const Int is_better = score < best;
    best = is_better ? score : best;
    codes = is_better ? found : codes;
  }
  return codes;
}

// Entry of the IQ1 codebook nearest to y + moved; score: the error.
inline FoundEntry nearest_ternary(const Float* y, float moved, const Metric<8>& metric) {
  Float q[8][8], target[8], pull[8];
  for (int i = 0; i < 8; ++i) {
    target[i] = y[i] + broadcast(moved);
    for (int j = 0; j < 8; ++j) q[i][j] = broadcast(metric.m[i][j]);
  }
  pulls(target, metric, pull);
  FoundEntry found = best_entry_under_metric<TernaryTable>(q, pull);
  for (int i = 0; i < 8; ++i) found.score = simd::fma(pull[i], target[i], found.score);
  return found;
}

// Codes of kLanes vectors y [unit] under a metric, or under weights w of each column's error.
// IQ1_S: y has its group's shift taken off.
template <typename Kind>
struct NearestVector;

template <typename Table, int unit, int index_bits, bool is_even, int group, int factor>
struct NearestVector<SignedVectorSearch<Table, unit, index_bits, is_even, group, factor>> {
  static Int under_metric(const Float* y, const Metric<unit>& metric) {
    return nearest_signed<Table, unit, index_bits, is_even>(y, metric);
  }
  static Int under_weights(const Float* y, const Float* w) {
    return round_signed<Table, unit, index_bits, is_even>(y, w).codes;
  }
};
template <int group>
struct NearestVector<GroupShiftSearch<group>> {
  static Int under_metric(const Float* y, const Metric<8>& metric) {
    return nearest_ternary(y, 0.0f, metric).index;
  }
  static Int under_weights(const Float* y, const Float* w) {
    return best_entry<TernaryTable, false>(y, w, simd::zero()).index;
  }
};
template <int group>
struct NearestVector<VectorShiftSearch<group>> {
  static Int under_metric(const Float* y, const Metric<8>& metric) {
    const FoundEntry plus = nearest_ternary(y, -0.125f, metric);
    const FoundEntry minus = nearest_ternary(y, 0.125f, metric);
    return minus.score < plus.score ? minus.index | broadcast(1 << 11) : plus.index;
  }
  static Int under_weights(const Float* y, const Float* w) {
    return VectorShiftSearch<group>::round(y, w, simd::zero()).codes;
  }
};

// Codes [n] of vectors y [unit, n], of which this call does [begin, end).
// metric: [unit, unit]; one that is diagonal is searched exactly, in the array code's order.
template <typename S>
inline void nearest_vectors(const float* y, std::int64_t n, std::int64_t begin, std::int64_t end,
                            const float* metric, std::int32_t* codes) {
  using Nearest = NearestVector<typename S::Kind>;
  constexpr int unit = S::kUnit;
  Metric<unit> m;
  Float diagonal[unit];
  bool is_diagonal = true;
  for (int i = 0; i < unit; ++i) {
    for (int j = 0; j < unit; ++j) {
      m.m[i][j] = metric[i * unit + j];
      is_diagonal &= i == j || m.m[i][j] == 0.0f;
    }
    diagonal[i] = broadcast(m.m[i][i]);
  }
  for (std::int64_t first = begin; first < end; first += kLanes) {
    const std::int64_t here = end - first < kLanes ? end - first : kLanes;
    Float lanes[unit];
    for (int j = 0; j < unit; ++j) {
      alignas(64) float values[kLanes] = {};
      for (std::int64_t lane = 0; lane < here; ++lane) values[lane] = y[j * n + first + lane];
      lanes[j] = simd::load(values);
    }
    alignas(64) std::int32_t found[kLanes];
    simd::store_int(found, is_diagonal ? Nearest::under_weights(lanes, diagonal)
                                       : Nearest::under_metric(lanes, m));
    for (std::int64_t lane = 0; lane < here; ++lane) codes[first + lane] = found[lane];
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
