// SPDX-License-Identifier: Apache-2.0
// Searches for the scale (and minimum) of kLanes groups at once: one group per lane.
// The meaning is src/lilliput/formats/scale_search.py; every operation and its order is the same,
// so that the bytes are the same.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "formats/codebooks.h"
#include "formats/encode/candidates.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

using simd::broadcast;
using simd::Float;
using simd::Int;
using simd::kLanes;

// As in scale_search.py.
inline constexpr float kTiny = 1e-12f;
inline constexpr float kHuge = 1e9f;
inline constexpr float kLargestHalf = 65504.0f;
inline constexpr float kLargestFloat = 3e38f;
inline constexpr float kTie = 5e-7f;
inline constexpr int kRefinements = 2;

inline Int is_clearly_above(Float gain, Float best) {
  return gain > best + simd::absolute(best) * broadcast(kTie);
}

inline Float lowest(Float a, Float b) { return a < b ? a : b; }
inline Float highest(Float a, Float b) { return a > b ? a : b; }
inline Float clipped(Float a, float low, float high) {
  return lowest(highest(a, broadcast(low)), broadcast(high));
}

// Round half to even, clip; never -0. Adding 1.5 * 2^23 leaves no fraction bits.
inline Float rounded_between(Float target, float low, float high) {
  const Float magic = broadcast(12582912.0f);
  return (clipped(target, low, high) + magic) - magic;
}

inline Float nonzero(Float a) {
  return simd::absolute(a) >= broadcast(kTiny) ? a : broadcast(1.0f);
}

// 1 / a; 0 where a is zero or too small to matter.
inline Float reciprocal(Float a) {
  const Int is_usable = simd::absolute(a) >= broadcast(kTiny);
  return is_usable ? broadcast(1.0f) / (is_usable ? a : broadcast(1.0f)) : simd::zero();
}

// Round to fp16, saturating, kept as float32.
inline Float half_rounded(Float a) {
  const Int bits = (Int)clipped(a, -kLargestHalf, kLargestHalf);
  const Int sign = bits & broadcast(std::numeric_limits<std::int32_t>::min());
  const Int magnitude = bits & broadcast(0x7fffffff);
  const Int normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & ~0x1fff;
  // Below 2^-14 the steps are 2^-24, the unit in the last place of 0.5.
  const Int subnormal = (Int)(((Float)magnitude + broadcast(0.5f)) - broadcast(0.5f));
  return (Float)((magnitude < broadcast(0x38800000) ? subnormal : normal) | sign);
}

// fp16 bits of a float that fp16 holds exactly.
inline std::uint16_t half_bits(float exact) {
  const auto bits = std::bit_cast<std::uint32_t>(exact);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  const std::uint32_t magnitude = bits & 0x7fffffff;
  const std::uint32_t half =
      magnitude < 0x38800000 ? static_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p24f)
                             : (magnitude - 0x38000000) >> 13;
  return static_cast<std::uint16_t>(sign | half);
}

// Four interleaved running sums; total = (0 + 2) + (1 + 3). Term j of a group goes to sum j % 4.
struct OrderedSum {
  Float part[4];
  template <bool is_first>
  void add(int slot, Float term) {
    part[slot] = is_first ? term : part[slot] + term;
  }
  Float total() const { return (part[0] + part[2]) + (part[1] + part[3]); }
};

// Calls term<is_first>(j, slot) for j = 0 .. n - 1.
template <int n, typename Term>
inline void for_each_term(Term&& term) {
  for (int slot = 0; slot < 4; ++slot) term.template operator()<true>(slot, slot);
  for (int start = 4; start < n; start += 4) {
    for (int slot = 0; slot < 4; ++slot) term.template operator()<false>(start + slot, slot);
  }
}

template <int n>
inline Float ordered_sum(const Float (&terms)[n]) {
  OrderedSum sum;
  for_each_term<n>([&]<bool is_first>(int j, int slot) { sum.add<is_first>(slot, terms[j]); });
  return sum.total();
}

// kLanes groups: column j of every group side by side.
template <int group>
struct GroupLanes {
  Float x[group];  // weights
  Float w[group];  // weights of their squared errors
};

template <int first, int last>
struct IntegerLevels {
  static constexpr float kFirst = first;
  static Float nearest_level(Float target) { return rounded_between(target, first, last); }
  static Float code(Float target) { return nearest_level(target) - broadcast(kFirst); }
};

// The 16 values of IQ4_NL and IQ4_XS; a tie goes to the lower one.
struct TableLevels {
  static Float nearest_level(Float target) {
    Float level = broadcast(static_cast<float>(kIq4NlValues[0]));
    for (int i = 0; i < 15; ++i) {
      const auto low = static_cast<float>(kIq4NlValues[i]);
      const auto high = static_cast<float>(kIq4NlValues[i + 1]);
      level += target > broadcast((high + low) * 0.5f) ? broadcast(high - low) : simd::zero();
    }
    return level;
  }
  static Float code(Float target) {
    Float code = simd::zero();
    for (int i = 0; i < 15; ++i) {
      const float middle = static_cast<float>(kIq4NlValues[i + 1] + kIq4NlValues[i]) * 0.5f;
      code += target > broadcast(middle) ? broadcast(1.0f) : simd::zero();
    }
    return code;
  }
};

template <int n>
inline Float peak_of(const Float (&x)[n]) {
  Float high = x[0], low = x[0];
  for (int j = 1; j < n; ++j) {
    high = highest(high, x[j]);
    low = lowest(low, x[j]);
  }
  return high >= -low ? high : low;
}

struct ScaleFit {
  Float scale;
  Float curvature;
};

template <typename Levels, int group, int n_anchors>
inline ScaleFit search_scale(const GroupLanes<group>& lanes, const float (&anchors)[n_anchors]) {
  const Float peak = nonzero(peak_of(lanes.x));
  Float best = broadcast(-1.0f);
  ScaleFit fit{simd::zero(), simd::zero()};
  for (int step = 0; step < n_anchors + kRefinements; ++step) {
    const Float inverse =
        step < n_anchors ? broadcast(anchors[step]) / peak : reciprocal(fit.scale);
    OrderedSum along_sum, across_sum;
    for_each_term<group>([&]<bool is_first>(int j, int slot) {
      const Float level = Levels::nearest_level(lanes.x[j] * inverse);
      const Float weighted = lanes.w[j] * level;
      along_sum.add<is_first>(slot, weighted * lanes.x[j]);
      across_sum.add<is_first>(slot, weighted * level);
    });
    const Float along = along_sum.total(), across = across_sum.total();
    const Float candidate = along / (across > simd::zero() ? across : broadcast(1.0f));
    const Float gain = along * candidate;
    const Int is_better = is_clearly_above(gain, best);
    best = is_better ? gain : best;
    fit.scale = is_better ? candidate : fit.scale;
    fit.curvature = is_better ? across : fit.curvature;
  }
  return fit;
}

template <typename Levels, int group>
inline Float scale_error(const GroupLanes<group>& lanes, Float scale) {
  const Float inverse = reciprocal(scale);
  OrderedSum sum;
  for_each_term<group>([&]<bool is_first>(int j, int slot) {
    const Float residual = lanes.x[j] - scale * Levels::nearest_level(lanes.x[j] * inverse);
    sum.add<is_first>(slot, (lanes.w[j] * residual) * residual);
  });
  return sum.total();
}

struct LineFit {
  Float scale;
  Float minimum;
  Float curvature;
  Float mean_code;
  Float weight_sum;
};

// What stays the same for all candidates of a line search.
template <int group>
struct LineProblem {
  Float weighted_deviation[group];
  Float low, width, mean, per_weight, weight_sum;
};

template <bool minimum_is_positive, int group>
inline LineProblem<group> line_problem(const GroupLanes<group>& lanes) {
  LineProblem<group> problem;
  Float high = lanes.x[0];
  Float low = lanes.x[0];
  for (int j = 1; j < group; ++j) {
    high = highest(high, lanes.x[j]);
    low = lowest(low, lanes.x[j]);
  }
  if (minimum_is_positive) low = low < simd::zero() ? low : simd::zero();
  problem.low = low;
  problem.width = nonzero(high - low);
  problem.weight_sum = ordered_sum(lanes.w);
  problem.per_weight =
      broadcast(1.0f) / (problem.weight_sum > simd::zero() ? problem.weight_sum : broadcast(1.0f));
  OrderedSum sum;
  for_each_term<group>(
      [&]<bool is_first>(int j, int slot) { sum.add<is_first>(slot, lanes.w[j] * lanes.x[j]); });
  problem.mean = sum.total() * problem.per_weight;
  for (int j = 0; j < group; ++j) {
    problem.weighted_deviation[j] = lanes.w[j] * (lanes.x[j] - problem.mean);
  }
  return problem;
}

// Least squares for the codes that `origin` and `inverse` give; keeps it where it is better.
template <int last_code, bool minimum_is_positive, int group>
inline void try_line(const GroupLanes<group>& lanes, const LineProblem<group>& problem,
                     Float origin, Float inverse, Float& best, LineFit& fit) {
  OrderedSum code_sum, square_sum, covariance_sum;
  for_each_term<group>([&]<bool is_first>(int j, int slot) {
    const Float code = rounded_between((lanes.x[j] - origin) * inverse, 0, last_code);
    const Float weighted = lanes.w[j] * code;
    code_sum.add<is_first>(slot, weighted);
    square_sum.add<is_first>(slot, weighted * code);
    covariance_sum.add<is_first>(slot, problem.weighted_deviation[j] * code);
  });
  const Float zero = simd::zero(), one = broadcast(1.0f);
  const Float sum_code = code_sum.total(), sum_square = square_sum.total();
  const Float covariance = covariance_sum.total();
  const Float mean_code = sum_code * problem.per_weight;
  const Float variance = sum_square - mean_code * sum_code;
  const Int has_slope = variance > broadcast(1e-6f) * sum_square;
  Float scale = has_slope ? covariance / (has_slope ? variance : one) : zero;
  Float gain = scale * covariance;
  Float minimum = scale * mean_code - problem.mean;
  if (minimum_is_positive) {
    const Float through_zero = covariance + problem.mean * sum_code;
    const Float zero_scale = through_zero / (sum_square > zero ? sum_square : one);
    const Int is_clamped = minimum < zero;
    gain = is_clamped
               ? zero_scale * through_zero - (problem.weight_sum * problem.mean) * problem.mean
               : gain;
    scale = is_clamped ? zero_scale : scale;
    minimum = is_clamped ? zero : minimum;
  }
  const Int is_better = is_clearly_above(gain, best) & (scale >= zero);
  best = is_better ? gain : best;
  fit.scale = is_better ? scale : fit.scale;
  fit.minimum = is_better ? minimum : fit.minimum;
  fit.curvature = is_better ? (variance > zero ? variance : zero) : fit.curvature;
  fit.mean_code = is_better ? mean_code : fit.mean_code;
}

template <int last_code, bool minimum_is_positive, int group, int n_starts>
inline LineFit search_line(const GroupLanes<group>& lanes, const LineStart (&starts)[n_starts]) {
  const LineProblem<group> problem = line_problem<minimum_is_positive>(lanes);
  Float best = broadcast(-kLargestFloat);
  LineFit fit{simd::zero(), simd::zero(), simd::zero(), simd::zero(), problem.weight_sum};
  for (const LineStart& start : starts) {
    const Float origin = problem.low + broadcast(start.low_cut) * problem.width;
    try_line<last_code, minimum_is_positive>(lanes, problem, origin,
                                             broadcast(start.codes) / problem.width, best, fit);
  }
  for (int step = 0; step < kRefinements; ++step) {
    try_line<last_code, minimum_is_positive>(lanes, problem, -fit.minimum, reciprocal(fit.scale),
                                             best, fit);
  }
  return fit;
}

template <int last_code, int group>
inline Float line_error(const GroupLanes<group>& lanes, Float scale, Float minimum) {
  const Float inverse = reciprocal(scale);
  OrderedSum sum;
  for_each_term<group>([&]<bool is_first>(int j, int slot) {
    const Float code = rounded_between((lanes.x[j] + minimum) * inverse, 0, last_code);
    const Float residual = lanes.x[j] - (scale * code - minimum);
    sum.add<is_first>(slot, (lanes.w[j] * residual) * residual);
  });
  return sum.total();
}

// kLanes blocks: value and curvature of their `groups` groups.
template <int groups>
struct BlockLanes {
  Float values[groups];
  Float curvature[groups];
};

// nearest_multiple: rounds values, in units of the scale, to the multiples that the format has.
template <int groups, typename NearestMultiple>
inline void try_outer_scale(const BlockLanes<groups>& lanes, Float peak, float anchor,
                            const NearestMultiple& nearest_multiple, Float& best, Float& outer) {
  Float candidate = half_rounded(peak / broadcast(anchor));
  for (int round = 0; round < 2; ++round) {
    const Float inverse = reciprocal(candidate);
    OrderedSum error_sum, along_sum, across_sum;
    for_each_term<groups>([&]<bool is_first>(int j, int slot) {
      const Float multiple = nearest_multiple(lanes.values[j] * inverse);
      const Float residual = candidate * multiple - lanes.values[j];
      error_sum.add<is_first>(slot, (lanes.curvature[j] * residual) * residual);
      const Float weighted = lanes.curvature[j] * multiple;
      along_sum.add<is_first>(slot, weighted * lanes.values[j]);
      across_sum.add<is_first>(slot, weighted * multiple);
    });
    const Float error = error_sum.total(), across = across_sum.total();
    const Int is_better = error < best;
    best = is_better ? error : best;
    outer = is_better ? candidate : outer;
    candidate =
        half_rounded(along_sum.total() / (across > simd::zero() ? across : broadcast(1.0f)));
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
