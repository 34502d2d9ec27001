// SPDX-License-Identifier: Apache-2.0
// Groups and blocks of one row brought into lanes, kLanes at a time; lanes past the end are zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "formats/encode/scale_search.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// n zeros, padded to whole lanes.
inline void resize_to_lanes(std::vector<float>& values, std::int64_t n) {
  values.assign(static_cast<std::size_t>((n + kLanes - 1) / kLanes * kLanes), 0.0f);
}

// One row: weights and the weights of their squared errors.
struct RowWeights {
  const float* x;
  const float* w;
  std::int64_t columns;
};

// Groups [first, first + kLanes) of the row.
template <int group>
inline void load_groups(const RowWeights& row, std::int64_t first, GroupLanes<group>& lanes) {
  alignas(64) float x[group * kLanes] = {};
  alignas(64) float w[group * kLanes] = {};
  const auto n = static_cast<int>(std::min<std::int64_t>(kLanes, row.columns / group - first));
  for (int lane = 0; lane < n; ++lane) {
    const std::int64_t start = (first + lane) * group;
    for (int j = 0; j < group; ++j) x[j * kLanes + lane] = row.x[start + j];
    for (int j = 0; j < group; ++j) w[j * kLanes + lane] = row.w[start + j];
  }
  for (int j = 0; j < group; ++j) {
    lanes.x[j] = simd::load(x + j * kLanes);
    lanes.w[j] = simd::load(w + j * kLanes);
  }
}

// Blocks [first, first + kLanes) of per-group arrays, of n_blocks.
template <int groups>
inline void load_blocks(const std::vector<float>& values, const std::vector<float>& curvature,
                        std::int64_t n_blocks, std::int64_t first, BlockLanes<groups>& lanes) {
  const auto n = static_cast<int>(std::min<std::int64_t>(kLanes, n_blocks - first));
  for (int g = 0; g < groups; ++g) {
    alignas(64) float v[kLanes] = {}, c[kLanes] = {};
    for (int lane = 0; lane < n; ++lane) {
      v[lane] = values[(first + lane) * groups + g];
      c[lane] = curvature[(first + lane) * groups + g];
    }
    lanes.values[g] = simd::load(v);
    lanes.curvature[g] = simd::load(c);
  }
}

// Numbers of n_blocks blocks, one per group of kLanes groups.
template <int groups>
inline Float of_blocks(const std::vector<float>& outer, std::int64_t n_blocks,
                       std::int64_t first_group) {
  alignas(64) float values[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t block = (first_group + lane) / groups;
    if (block < n_blocks) values[lane] = outer[block];
  }
  return simd::load(values);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
