// SPDX-License-Identifier: Apache-2.0
// Floats times floats, many tokens.
#pragma once

#include "kernels/isa/tiling.h"

namespace lilliput::kernels::LILLIPUT_ISA {

inline std::int64_t padded_columns(std::int64_t columns) { return round_up(columns, kSegment); }

// kLanes rows x 256 columns, rows as lanes.
struct alignas(64) FloatPanel {
  Float values[kSegment];
};

// sums[t][r] += sum over columns of panel[r] * input[t]
template <int n_panels>
void multiply_tile(const FloatPanel* panels, const float* input, int columns, float* sums) {
  Float accumulators[n_panels][kTokenTile];
#pragma GCC unroll 2
  for (int r = 0; r < n_panels; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokenTile; ++t) accumulators[r][t] = simd::zero();
  }
#pragma GCC unroll 2
  for (int column = 0; column < columns; ++column) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokenTile; ++t) {
      const Float x = simd::broadcast(input[column * kTokenTile + t]);
#pragma GCC unroll 2
      for (int r = 0; r < n_panels; ++r) {
        accumulators[r][t] = simd::fma(panels[r].values[column], x, accumulators[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokenTile; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < n_panels; ++r) {
      float* sum = sums + t * kRowBlock + r * kLanes;
      simd::store(sum, simd::load(sum) + accumulators[r][t]);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
