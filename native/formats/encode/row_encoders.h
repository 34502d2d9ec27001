// SPDX-License-Identifier: Apache-2.0
// Searched encoders, a row at a time: groups in lanes, then blocks in lanes, then groups again.
// The meaning is the `encode` of src/lilliput/formats/{single_scale,scale_and_minimum,
// scaled_scales,scaled_scales_and_minimums}.py under the weights of `error_weights` in
// src/lilliput/methods/searched_scales.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "formats/encode/block_packing.h"
#include "formats/encode/row_lanes.h"
#include "formats/encode/scale_search.h"
#include "formats/encode/vector_encoders.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// What the search of a format needs to know; see the class of the same name in Python.
template <typename Format>
struct Search;

template <int size, typename LevelsOf>
struct SingleScaleSearch {
  static constexpr int kGroup = size;
  using Levels = LevelsOf;
};
template <>
struct Search<q8_0> : SingleScaleSearch<32, IntegerLevels<-127, 127>> {};
template <>
struct Search<q4_0> : SingleScaleSearch<32, IntegerLevels<-8, 7>> {};
template <>
struct Search<q5_0> : SingleScaleSearch<32, IntegerLevels<-16, 15>> {};
template <>
struct Search<iq4_nl> : SingleScaleSearch<32, TableLevels> {};

template <>
struct Search<tq1_0> : SingleScaleSearch<256, IntegerLevels<-1, 1>> {};
template <>
struct Search<tq2_0> : SingleScaleSearch<256, IntegerLevels<-1, 1>> {};

template <>
struct Search<iq3_s> : SignedVectorSearch<CodebookTable<OddLevels, kIq3SGrid>, 4, 9, false, 32, 1> {
};
template <>
struct Search<iq3_xxs>
    : SignedVectorSearch<CodebookTable<SteppedLevels, kIq3XxsGrid>, 8, 8, true, 32, -1> {};
template <>
struct Search<iq2_s>
    : SignedVectorSearch<CodebookTable<ThreeLevels, kIq2SGrid>, 8, 10, false, 16, -2> {};
template <>
struct Search<iq2_xs>
    : SignedVectorSearch<CodebookTable<ThreeLevels, kIq2XsGrid>, 8, 9, true, 16, -2> {};
template <>
struct Search<iq2_xxs>
    : SignedVectorSearch<CodebookTable<ThreeLevels, kIq2XxsGrid>, 8, 8, true, 32, -2> {};
template <>
struct Search<iq1_s> : GroupShiftSearch<32> {};
template <>
struct Search<iq1_m> : VectorShiftSearch<16> {};

template <int size, typename LevelsOf, int low, int high, bool tries_all>
struct ScaledScalesSearch {
  static constexpr int kGroup = size, kLowCode = low, kHighCode = high;
  static constexpr bool kTriesEveryScaleCode = tries_all;
  using Levels = LevelsOf;
};
template <>
struct Search<q3_k> : ScaledScalesSearch<16, IntegerLevels<-4, 3>, -32, 31, true> {};
template <>
struct Search<q6_k> : ScaledScalesSearch<16, IntegerLevels<-32, 31>, -128, 127, false> {};
template <>
struct Search<iq4_xs> : ScaledScalesSearch<32, TableLevels, -32, 31, false> {};

template <int size, int last>
struct LineSearch {
  static constexpr int kGroup = size, kLastCode = last;
};
template <>
struct Search<q4_1> : LineSearch<32, 15> {};
template <>
struct Search<q5_1> : LineSearch<32, 31> {};

template <int size, int last, int last_parameter>
struct ScaledLineSearch {
  static constexpr int kGroup = size, kLastCode = last, kLastParameterCode = last_parameter;
};
template <>
struct Search<q2_k> : ScaledLineSearch<16, 3, 15> {};
template <>
struct Search<q4_k> : ScaledLineSearch<32, 15, 63> {};
template <>
struct Search<q5_k> : ScaledLineSearch<32, 31, 63> {};

// Changes of (scale code, minimum code) that the inner fit of lines compares.
inline constexpr int kNeighbours[8][2] = {{1, 0}, {-1, 0},  {0, 1},  {0, -1},
                                          {1, 1}, {-1, -1}, {1, -1}, {-1, 1}};

// One row and the working memory of its search, reused from row to row.
class RowSearch {
 public:
  // importance: relative importance of each column, or null; see kernels/encode.h.
  void set_row(const float* weights, const float* importance, std::int64_t columns,
               float mean_square_share) {
    columns_ = columns;
    x_.resize(columns);
    w_.resize(columns);
    codes_.resize(columns);
    for (std::int64_t c = 0; c < columns; ++c)
      x_[c] = std::min(std::max(weights[c], -kHuge), kHuge);
    const bool is_importance_alone = __builtin_isinf(mean_square_share);
    const float share = is_importance_alone ? 0.0f : mean_square_share * mean_square();
    for (std::int64_t c = 0; c < columns; ++c) {
      const float root = is_importance_alone ? 1.0f : __builtin_sqrtf(share + x_[c] * x_[c]);
      w_[c] = importance != nullptr ? importance[c] * root : root;
    }
  }

  template <typename Format>
  void encode(std::uint8_t* blocks) {
    if constexpr (requires { Search<Format>::kUnit; }) {
      encode_vectors<Format, Search<Format>>({x_.data(), w_.data(), columns_},
                                             Candidates<Format>::anchors, vectors_,
                                             block_at<Format>(blocks, 0));
    } else if constexpr (requires { Search<Format>::kLastParameterCode; }) {
      encode_scaled_lines<Format>(blocks);
    } else if constexpr (requires { Search<Format>::kLastCode; }) {
      encode_lines<Format>(blocks);
    } else if constexpr (requires { Search<Format>::kLowCode; }) {
      encode_scaled_scales<Format>(blocks);
    } else {
      encode_single_scales<Format>(blocks);
    }
  }

 private:
  // 32 interleaved running sums over the columns, then an ordered sum of those.
  float mean_square() const {
    float lanes[32] = {};
    for (std::int64_t start = 0; start < columns_; start += 32) {
      for (int i = 0; i < 32; ++i) lanes[i] += x_[start + i] * x_[start + i];
    }
    float part[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
    for (int i = 4; i < 32; ++i) part[i % 4] += lanes[i];
    return ((part[0] + part[2]) + (part[1] + part[3])) / static_cast<float>(columns_);
  }

  template <int group>
  void load_groups(std::int64_t first, GroupLanes<group>& lanes) const {
    formats::load_groups({x_.data(), w_.data(), columns_}, first, lanes);
  }

  // Stores column j of groups [first, first + kLanes): codes as floats.
  template <int group, typename Code>
  void store_codes(std::int64_t first, const GroupLanes<group>& lanes, Code&& code) {
    const auto n = static_cast<int>(std::min<std::int64_t>(kLanes, columns_ / group - first));
    for (int j = 0; j < group; ++j) {
      alignas(64) float values[kLanes];
      simd::store(values, code(lanes.x[j]));
      for (int lane = 0; lane < n; ++lane) {
        codes_[(first + lane) * group + j] = static_cast<std::uint8_t>(values[lane]);
      }
    }
  }

  template <typename Format>
  typename Format::Block* block_at(std::uint8_t* blocks, std::int64_t index) const {
    return reinterpret_cast<typename Format::Block*>(blocks) + index;
  }

  template <typename Format>
  void encode_single_scales(std::uint8_t* blocks) {
    using S = Search<Format>;
    const std::int64_t n_groups = columns_ / S::kGroup;
    resize_to_lanes(scale_, n_groups);
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      GroupLanes<S::kGroup> lanes;
      load_groups(first, lanes);
      const ScaleFit fit = search_scale<typename S::Levels>(lanes, Candidates<Format>::anchors);
      const Float scale = half_rounded(fit.scale);
      const Float inverse = reciprocal(scale);
      simd::store(scale_.data() + first, scale);
      store_codes(first, lanes, [&](Float x) { return S::Levels::code(x * inverse); });
    }
    for (std::int64_t b = 0; b < n_groups; ++b) {
      BlockParameters parameters;
      parameters.scale = half_bits(scale_[b]);
      pack(*block_at<Format>(blocks, b), codes_.data() + b * S::kGroup, parameters);
    }
  }

  template <typename Format>
  void encode_lines(std::uint8_t* blocks) {
    using S = Search<Format>;
    const std::int64_t n_groups = columns_ / S::kGroup;
    resize_to_lanes(scale_, n_groups);
    resize_to_lanes(minimum_, n_groups);
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      GroupLanes<S::kGroup> lanes;
      load_groups(first, lanes);
      const LineFit line = search_line<S::kLastCode, false>(lanes, Candidates<Format>::starts);
      const Float scale = half_rounded(line.scale);
      const Float minimum = half_rounded(-(line.minimum + (scale - line.scale) * line.mean_code));
      const Float inverse = reciprocal(scale);
      simd::store(scale_.data() + first, scale);
      simd::store(minimum_.data() + first, minimum);
      store_codes(first, lanes, [&](Float x) {
        return rounded_between((x - minimum) * inverse, 0, S::kLastCode);
      });
    }
    for (std::int64_t b = 0; b < n_groups; ++b) {
      BlockParameters parameters;
      parameters.scale = half_bits(scale_[b]);
      parameters.minimum = half_bits(minimum_[b]);
      pack(*block_at<Format>(blocks, b), codes_.data() + b * S::kGroup, parameters);
    }
  }

  // outer[b] = the fp16 number whose multiples suit values of block b's groups.
  template <int groups, int low_code, int high_code>
  void fit_blocks(const std::vector<float>& values, const std::vector<float>& curvature,
                  const std::vector<float>& anchors, std::vector<float>& outer) const {
    const std::int64_t n_blocks = columns_ / 256;
    const auto nearest = [](Float value) { return rounded_between(value, low_code, high_code); };
    resize_to_lanes(outer, n_blocks);
    for (std::int64_t first = 0; first < n_blocks; first += kLanes) {
      BlockLanes<groups> lanes;
      load_blocks(values, curvature, n_blocks, first, lanes);
      const Float peak = nonzero(peak_of(lanes.values));
      Float best = broadcast(std::numeric_limits<float>::infinity());
      Float chosen = simd::zero();
      for (const float anchor : anchors)
        try_outer_scale(lanes, peak, anchor, nearest, best, chosen);
      simd::store(outer.data() + first, chosen);
    }
  }

  template <typename Format>
  void encode_scaled_scales(std::uint8_t* blocks) {
    using S = Search<Format>;
    constexpr int groups = 256 / S::kGroup;
    const std::int64_t n_groups = columns_ / S::kGroup;
    resize_to_lanes(scale_, n_groups);
    resize_to_lanes(curvature_, n_groups);
    resize_to_lanes(scale_code_, n_groups);
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      GroupLanes<S::kGroup> lanes;
      load_groups(first, lanes);
      const ScaleFit fit = search_scale<typename S::Levels>(lanes, Candidates<Format>::anchors);
      simd::store(scale_.data() + first, fit.scale);
      simd::store(curvature_.data() + first, fit.curvature);
    }
    std::vector<float> anchors;
    for (int k = 0; k < 9; ++k) anchors.push_back(S::kLowCode - 0.5f + 0.5f * k);
    for (int k = 0; k < 9; ++k) anchors.push_back(S::kHighCode + 0.5f - 0.5f * k);
    fit_blocks<groups, S::kLowCode, S::kHighCode>(scale_, curvature_, anchors, outer_scale_);
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      GroupLanes<S::kGroup> lanes;
      load_groups(first, lanes);
      const Float scale = of_blocks<groups>(outer_scale_, columns_ / 256, first);
      const Float code = best_scale_code<S>(lanes, scale, simd::load(scale_.data() + first));
      const Float inverse = reciprocal(scale * code);
      simd::store(scale_code_.data() + first, code);
      store_codes(first, lanes, [&](Float x) { return S::Levels::code(x * inverse); });
    }
    for (std::int64_t b = 0; b < columns_ / 256; ++b) {
      BlockParameters parameters;
      parameters.scale = half_bits(outer_scale_[b]);
      for (int g = 0; g < groups; ++g)
        parameters.scale_codes[g] = static_cast<std::int16_t>(scale_code_[b * groups + g]);
      pack(*block_at<Format>(blocks, b), codes_.data() + b * 256, parameters);
    }
  }

  // The scale code of each group with the least error after rounding its weights.
  template <typename S>
  static Float best_scale_code(const GroupLanes<S::kGroup>& lanes, Float scale, Float wanted) {
    using Levels = typename S::Levels;
    const Float nearest = rounded_between(wanted * reciprocal(scale), S::kLowCode, S::kHighCode);
    Float chosen = nearest;
    Float best = scale_error<Levels>(lanes, scale * nearest);
    const auto consider = [&](Float code) {
      const Float error = scale_error<Levels>(lanes, scale * code);
      const Int is_better = error < best;
      best = is_better ? error : best;
      chosen = is_better ? code : chosen;
    };
    if constexpr (S::kTriesEveryScaleCode) {
      for (int code = S::kLowCode; code <= S::kHighCode; ++code)
        consider(broadcast(static_cast<float>(code)));
    } else {
      consider(clipped(nearest - broadcast(1.0f), S::kLowCode, S::kHighCode));
      consider(clipped(nearest + broadcast(1.0f), S::kLowCode, S::kHighCode));
    }
    return chosen;
  }

  template <typename Format>
  void encode_scaled_lines(std::uint8_t* blocks) {
    using S = Search<Format>;
    constexpr int groups = 256 / S::kGroup;
    constexpr int last = S::kLastParameterCode;
    const std::int64_t n_groups = columns_ / S::kGroup;
    for (auto* values : {&scale_, &minimum_, &curvature_, &mean_code_, &weight_sum_, &scale_code_,
                         &minimum_code_}) {
      resize_to_lanes(*values, n_groups);
    }
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      GroupLanes<S::kGroup> lanes;
      load_groups(first, lanes);
      const LineFit line = search_line<S::kLastCode, true>(lanes, Candidates<Format>::starts);
      simd::store(scale_.data() + first, line.scale);
      simd::store(minimum_.data() + first, line.minimum);
      simd::store(curvature_.data() + first, line.curvature);
      simd::store(mean_code_.data() + first, line.mean_code);
      simd::store(weight_sum_.data() + first, line.weight_sum);
    }
    std::vector<float> anchors;
    for (int k = 0; k < (last > 20 ? 20 : 12); ++k) anchors.push_back(last + 0.5f - 0.5f * k);
    fit_blocks<groups, 0, last>(scale_, curvature_, anchors, outer_scale_);
    for (std::int64_t first = 0; first < n_groups; first += kLanes) {
      const Float scale = of_blocks<groups>(outer_scale_, columns_ / 256, first);
      const Float wanted = simd::load(scale_.data() + first);
      const Float code = rounded_between(wanted * reciprocal(scale), 0, last);
      // The minimum that suits the group once its scale is rounded.
      const Float minimum = simd::load(minimum_.data() + first) +
                            (scale * code - wanted) * simd::load(mean_code_.data() + first);
      simd::store(scale_code_.data() + first, code);
      simd::store(minimum_.data() + first, minimum > simd::zero() ? minimum : simd::zero());
    }
    fit_blocks<groups, 0, last>(minimum_, weight_sum_, anchors, outer_minimum_);
    for (std::int64_t first = 0; first < n_groups; first += kLanes)
      fit_line_codes<S>(first, of_blocks<groups>(outer_scale_, columns_ / 256, first),
                        of_blocks<groups>(outer_minimum_, columns_ / 256, first));
    for (std::int64_t b = 0; b < columns_ / 256; ++b) {
      BlockParameters parameters;
      parameters.scale = half_bits(outer_scale_[b]);
      parameters.minimum = half_bits(outer_minimum_[b]);
      for (int g = 0; g < groups; ++g) {
        parameters.scale_codes[g] = static_cast<std::int16_t>(scale_code_[b * groups + g]);
        parameters.minimum_codes[g] = static_cast<std::int16_t>(minimum_code_[b * groups + g]);
      }
      pack(*block_at<Format>(blocks, b), codes_.data() + b * 256, parameters);
    }
  }

  // Scale and minimum codes of kLanes groups, by the error after rounding; then their codes.
  template <typename S>
  void fit_line_codes(std::int64_t first, Float scale, Float minimum) {
    constexpr int last = S::kLastParameterCode;
    GroupLanes<S::kGroup> lanes;
    load_groups(first, lanes);
    const Float nearest = simd::load(scale_code_.data() + first);
    const Float nearest_minimum =
        rounded_between(simd::load(minimum_.data() + first) * reciprocal(minimum), 0, last);
    Float chosen = nearest, chosen_minimum = nearest_minimum;
    Float best = line_error<S::kLastCode>(lanes, scale * nearest, minimum * nearest_minimum);
    for (const auto& [scale_step, minimum_step] : kNeighbours) {
      const Float code = clipped(nearest + broadcast(static_cast<float>(scale_step)), 0, last);
      const Float minimum_code =
          clipped(nearest_minimum + broadcast(static_cast<float>(minimum_step)), 0, last);
      const Float error = line_error<S::kLastCode>(lanes, scale * code, minimum * minimum_code);
      const Int is_better = error < best;
      best = is_better ? error : best;
      chosen = is_better ? code : chosen;
      chosen_minimum = is_better ? minimum_code : chosen_minimum;
    }
    simd::store(scale_code_.data() + first, chosen);
    simd::store(minimum_code_.data() + first, chosen_minimum);
    const Float inverse = reciprocal(scale * chosen);
    const Float offset = minimum * chosen_minimum;
    store_codes(first, lanes,
                [&](Float x) { return rounded_between((x + offset) * inverse, 0, S::kLastCode); });
  }

  std::int64_t columns_ = 0;
  std::vector<float> x_, w_;
  std::vector<std::uint8_t> codes_;
  // Per group, padded to whole lanes.
  std::vector<float> scale_, minimum_, curvature_, mean_code_, weight_sum_;
  std::vector<float> scale_code_, minimum_code_;
  // Per block.
  std::vector<float> outer_scale_, outer_minimum_;
  VectorScratch vectors_;
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
