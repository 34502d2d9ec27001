// SPDX-License-Identifier: Apache-2.0
// The innermost product of many tokens: panels of integer weights times one tile of int8
// activations.
#pragma once

#include "kernels/isa/int8_input.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// kLanes rows x 256 columns, rows as lanes. The minimum is negated, ready for a multiply-add.
struct alignas(64) Panel {
  Int codes[kSegment / 4];  // four codes of consecutive columns of each row
  Float scale[16];
  Float minus_minimum[16];

  // Takes the codes of the columns from 4 * quad on.
  [[gnu::always_inline]] void put(int quad, const Int (&four)[4]) {
    std::copy_n(four, 4, codes + quad);
  }
};

// What the multiplication must know of a format: many formats share a grid.
struct Grid {
  int group_size;
  int zero_point;  // as the panel holds the codes
  bool is_signed;
  bool has_minimum;
};

template <typename Format>
constexpr Grid grid_of() {
  return {Format::group_size, Format::is_signed ? simd::kSignedBias : Format::zero_point,
          Format::is_signed, Format::has_minimum};
}

// Integer dot products of one group: dots[r][t] = sum((code[r] - zero_point) * code[t]), exact.
template <Grid grid, int n_panels, int n_tokens>
inline void group_dots(const Panel* panels, const TileInput<kTokenTile>& input, int group,
                       Int (&dots)[n_panels][n_tokens]) {
  constexpr int kQuads = grid.group_size / 4;
#pragma GCC unroll 8
  for (int t = 0; t < n_tokens; ++t) {
    const std::int32_t sum = grid.group_size == 32 ? input.sum32[group][t] : input.sum16[group][t];
    const Int start = grid.zero_point == 0 ? Int{} : simd::broadcast(sum) * -grid.zero_point;
#pragma GCC unroll 2
    for (int r = 0; r < n_panels; ++r) dots[r][t] = start;
  }
#pragma GCC unroll 4
  for (int quad = group * kQuads; quad < (group + 1) * kQuads; quad += 2) {
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; ++t) {
      const Int input0 = simd::broadcast_one<kTokenTile>(input.codes[quad], t);
      const Int input1 = simd::broadcast_one<kTokenTile>(input.codes[quad + 1], t);
#pragma GCC unroll 2
      for (int r = 0; r < n_panels; ++r) {
        const Int weights0 = panels[r].codes[quad];
        const Int weights1 = panels[r].codes[quad + 1];
        dots[r][t] = grid.is_signed
                         ? simd::dot_signed(dots[r][t], weights0, input0, weights1, input1)
                         : simd::dot_unsigned(dots[r][t], weights0, input0, weights1, input1);
      }
    }
  }
}

// sums[t][r] += over `groups32` groups of 32 columns:
//   input_scale[t] * (scale[r] * dots[r][t] - minimum[r] * sum(code[t]))
template <Grid grid, int n_panels, int n_tokens>
void multiply_tile(const Panel* panels, const TileInput<kTokenTile>& input, int groups32,
                   float* sums) {
  constexpr int kParts = 32 / grid.group_size;
  Float accumulators[n_panels][n_tokens];
#pragma GCC unroll 2
  for (int r = 0; r < n_panels; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; ++t) accumulators[r][t] = simd::zero();
  }
#pragma GCC unroll 1
  for (int group = 0; group < groups32 * kParts; ++group) {
    Int dots[n_panels][n_tokens];
    group_dots<grid>(panels, input, group, dots);
    const int group32 = group / kParts;
#pragma GCC unroll 8
    for (int t = 0; t < n_tokens; ++t) {
      const Float input_scale = simd::broadcast(input.scale[group32][t]);
#pragma GCC unroll 2
      for (int r = 0; r < n_panels; ++r) {
        const Float product = simd::to_float(dots[r][t]) * panels[r].scale[group];
        accumulators[r][t] = simd::fma(product, input_scale, accumulators[r][t]);
      }
      if constexpr (grid.has_minimum) {
        const Float input_sum =
            kParts == 1 ? simd::broadcast(input.scaled_sum[group32][t])
                        : simd::to_float(simd::broadcast(input.sum16[group][t])) * input_scale;
#pragma GCC unroll 2
        for (int r = 0; r < n_panels; ++r) {
          accumulators[r][t] =
              simd::fma(panels[r].minus_minimum[group], input_sum, accumulators[r][t]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < n_tokens; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < n_panels; ++r) {
      float* sum = sums + t * kRowBlock + r * kLanes;
      simd::store(sum, simd::load(sum) + accumulators[r][t]);
    }
  }
}

// As rows come from `unpack_rows`.
template <typename Format>
constexpr Grid grid_of_rows() {
  if constexpr (requires { Format::spelled_values; }) {
    return {Format::group_size, simd::kSignedBias, true, false};
  } else {
    return grid_of<Format>();
  }
}

// What `unpack_rows` gives, multiplied with a tile while it is unpacked: the codes need not be kept.
// The sums are those of multiply_tile.
template <Grid grid, int tile>
class FloatLaneProduct {
 public:
  Float scale[kSegment / grid.group_size];
  Float minus_minimum[8];

  explicit FloatLaneProduct(const TileInput<tile>& input) : input_(input) {}

  [[gnu::always_inline]] void put(int quad, const Int (&codes)[4]) {
    const int group = quad / kQuads;
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      if (quad % kQuads == 0 && grid.zero_point == 0) dots_[t] = Int{};
      if (quad % kQuads == 0 && grid.zero_point != 0) {
        const std::int32_t sum = kQuads == 8 ? input_.sum32[group][t] : input_.sum16[group][t];
        dots_[t] = simd::broadcast(-grid.zero_point * sum);
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
#pragma GCC unroll 8
      for (int t = 0; t < tile; ++t) {
        const Int input0 = simd::broadcast_one<tile>(input_.codes[quad + i], t);
        const Int input1 = simd::broadcast_one<tile>(input_.codes[quad + i + 1], t);
        dots_[t] = grid.is_signed
                       ? simd::dot_signed(dots_[t], codes[i], input0, codes[i + 1], input1)
                       : simd::dot_unsigned(dots_[t], codes[i], input0, codes[i + 1], input1);
      }
    }
    if (quad % kQuads == kQuads - 4) finish_group(group);
  }

  [[gnu::always_inline]] void add_to_sums(float* sums) const {
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      float* sum = sums + t * kLanes;
      simd::store(sum, simd::load(sum) + totals_[t]);
    }
  }

 private:
  static constexpr int kQuads = grid.group_size / 4;
  static_assert(kQuads == 8 || !grid.has_minimum);

  [[gnu::always_inline]] void finish_group(int group) {
#pragma GCC unroll 8
    for (int t = 0; t < tile; ++t) {
      const Float product = simd::to_float(dots_[t]) * scale[group];
      totals_[t] =
          simd::fma(product, simd::broadcast(input_.scale[group * kQuads / 8][t]), totals_[t]);
      if constexpr (grid.has_minimum) {
        const Float input_sum = simd::broadcast(input_.scaled_sum[group][t]);
        totals_[t] = simd::fma(minus_minimum[group], input_sum, totals_[t]);
      }
    }
  }

  const TileInput<tile>& input_;
  Int dots_[tile];
  Float totals_[tile] = {};
};

// The last tile of a batch may be ragged: work on the next even number of tokens.
template <Grid grid>
void multiply_panels(const Panel* panels, int used, const TileInput<kTokenTile>& input, int tokens,
                     int groups32, float* sums) {
  for (int panel = 0; panel < used; panel += kPanelTile) {
    float* tile = sums + panel * kLanes;
    if (tokens > 4) {
      multiply_tile<grid, kPanelTile, kTokenTile>(panels + panel, input, groups32, tile);
    } else if (tokens > 2) {
      multiply_tile<grid, kPanelTile, 4>(panels + panel, input, groups32, tile);
    } else {
      multiply_tile<grid, kPanelTile, 2>(panels + panel, input, groups32, tile);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
