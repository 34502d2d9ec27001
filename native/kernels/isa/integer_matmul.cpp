// SPDX-License-Identifier: Apache-2.0
// Integer linear layers for one instruction set. Two vectors of rows meet a tile of tokens: each
// line of weights is loaded once and each input broadcast once per tile, and nothing but dot
// products happens between the ends of a group, so that they set the pace.
#include <algorithm>
#include <cstring>

#include "kernels/isa/integer_input.h"

namespace lilliput::kernels {
namespace LILLIPUT_ISA {
namespace {

constexpr int kRowVectors = 2;
constexpr int kRowTile = kRowVectors * kLanes < kPanelRows ? kPanelRows : kRowVectors * kLanes;
// Integer and float sums of a tile share the registers where there are several groups.
constexpr int kGroupedTokens = kLanes == 16 ? 6 : 2;
constexpr int kLineBytes = kPanelRows * 4;

// One call of a tile: which rows, tokens, and where results go.
struct Tile {
  const IntegerWeight& weight;
  const std::int32_t* sums;  // of the weight's codes
  const PreparedInput& input;
  const Output& y;
  bool has_input_groups;
};

// Of kRowVectors vectors of rows from `row` on: where their lines and parameters begin.
inline std::int64_t panel_of(std::int64_t row) { return row / kPanelRows; }
inline std::int64_t lane_of(std::int64_t row) { return row % kPanelRows; }

template <int n_tokens>
inline void dot_group(const std::int8_t* (&lines)[kRowVectors], const std::uint32_t* codes,
                      std::int64_t quads, Int (&dots)[kRowVectors][n_tokens]) {
#pragma GCC unroll 1
  for (std::int64_t quad = 0; quad < quads; ++quad) {
    Int weights[kRowVectors];
#pragma GCC unroll 2
    for (int r = 0; r < kRowVectors; ++r) weights[r] = simd::load_int(lines[r] + quad * kLineBytes);
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) {
      const Int code = simd::broadcast(static_cast<std::int32_t>(codes[quad * kInputTile + t]));
#pragma GCC unroll 2
      for (int r = 0; r < kRowVectors; ++r) {
        dots[r][t] = simd::dot_bytes(dots[r][t], code, weights[r]);
      }
    }
  }
  for (int r = 0; r < kRowVectors; ++r) lines[r] += quads * kLineBytes;
}

// What the zero points add to the dots of one group, so that the sum is exact from the start.
template <int n_tokens>
inline void start_dots(const Tile& tile, std::int64_t row, std::int64_t group,
                       const std::int32_t* zero_points, const std::int32_t* code_sums,
                       Int (&dots)[kRowVectors][n_tokens]) {
  const IntegerWeight& weight = tile.weight;
  const std::int64_t groups = tile.input.groups;
#pragma GCC unroll 2
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    const Int sums = simd::load_int(tile.sums + (panel_of(first) * groups + group) * kPanelRows +
                                    lane_of(first));
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) dots[r][t] = sums * -zero_points[t];
    if (weight.zero_point == nullptr) continue;
    const std::int64_t own = weight.groups == 1 ? 0 : group;
    const Int zero_point = simd::load_int(
        weight.zero_point + (panel_of(first) * weight.groups + own) * kPanelRows + lane_of(first));
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) dots[r][t] -= zero_point * code_sums[t];
  }
}

inline Float scale_of(const IntegerWeight& weight, std::int64_t row, std::int64_t group) {
  const std::int64_t own = weight.groups == 1 ? 0 : group;
  return simd::load(weight.scale + (panel_of(row) * weight.groups + own) * kPanelRows +
                    lane_of(row));
}

std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>((bits >> 16) | 64);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Results of one vector of rows of one token; `n` of them exist.
inline void put(const Output& y, std::int64_t token, std::int64_t row, int n, Float result) {
  const std::int64_t place = token * y.stride + row;
  if (y.type == NumberType::f32 && n == kLanes) {
    simd::store(static_cast<float*>(y.values) + place, result);
    return;
  }
  float values[kLanes];
  simd::store(values, result);
  if (y.type == NumberType::f32) {
    std::copy_n(values, n, static_cast<float*>(y.values) + place);
    return;
  }
  auto* halves = static_cast<std::uint16_t*>(y.values) + place;
  for (int i = 0; i < n; ++i) halves[i] = to_bfloat16(values[i]);
}

template <int n_tokens>
inline void finish(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                   int tokens, const float* input_scale,
                   const Float (&results)[kRowVectors][n_tokens]) {
  const Output& y = tile.y;
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    const int n = static_cast<int>(std::min<std::int64_t>(kLanes, row_end - first));
    if (n <= 0) return;
    Float bias = simd::zero();
    if (y.bias != nullptr) {
      float values[kLanes] = {};
      std::copy_n(y.bias + first, n, values);
      bias = simd::load(values);
    }
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) {
      Float result = results[r][t];
      if (!tile.has_input_groups) result *= simd::broadcast(input_scale[t]);
      if (y.bias != nullptr) result += bias;
      if (t < tokens) put(y, token + t, first, n, result);
    }
  }
}

// One group: the rows' scale and the tokens' meet the sum once.
template <int n_tokens>
void multiply_whole(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                    int tokens) {
  const PreparedInput& input = tile.input;
  const std::int8_t* lines[kRowVectors];
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    lines[r] = tile.weight.panels + panel_of(first) * input.quads * kLineBytes + lane_of(first) * 4;
  }
  Int dots[kRowVectors][n_tokens];
  start_dots(tile, row, 0, input.zero_point + token, input.sums + token, dots);
  const std::uint32_t* codes =
      input.codes + token / kInputTile * input.quads * kInputTile + token % kInputTile;
  dot_group(lines, codes, input.quads, dots);
  Float results[kRowVectors][n_tokens];
  for (int r = 0; r < kRowVectors; ++r) {
    const Float scale = scale_of(tile.weight, row + r * kLanes, 0);
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) results[r][t] = simd::to_float(dots[r][t]) * scale;
  }
  finish(tile, row, row_end, token, tokens, input.scale + token, results);
}

// Several groups, each with a scale of the rows, of the tokens, or of both.
template <int n_tokens>
void multiply_groups(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                     int tokens) {
  const PreparedInput& input = tile.input;
  const std::int64_t in_tile = token % kInputTile;
  const std::int64_t quads = input.quads / input.groups;
  const std::int8_t* lines[kRowVectors];
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    lines[r] = tile.weight.panels + panel_of(first) * input.quads * kLineBytes + lane_of(first) * 4;
  }
  const std::uint32_t* codes =
      input.codes + token / kInputTile * input.quads * kInputTile + in_tile;
  Float results[kRowVectors][n_tokens];
  for (std::int64_t group = 0; group < input.groups; ++group) {
    const std::int64_t index = (token / kInputTile * input.groups + group) * kInputTile + in_tile;
    Int dots[kRowVectors][n_tokens];
    start_dots(tile, row, group, input.zero_point + index, input.sums + index, dots);
    dot_group(lines, codes + group * quads * kInputTile, quads, dots);
#pragma GCC unroll 2
    for (int r = 0; r < kRowVectors; ++r) {
      const Float scale = scale_of(tile.weight, row + r * kLanes, group);
#pragma GCC unroll 12
      for (int t = 0; t < n_tokens; ++t) {
        Float part = simd::to_float(dots[r][t]) * scale;
        if (tile.has_input_groups) part *= simd::broadcast(input.scale[index + t]);
        results[r][t] = group == 0 ? part : results[r][t] + part;
      }
    }
  }
  const std::int64_t index = token / kInputTile * input.groups * kInputTile + in_tile;
  finish(tile, row, row_end, token, tokens, input.scale + index, results);
}

void multiply_tile(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                   int tokens) {
  if (tile.input.groups > 1) {
    for (int done = 0; done < tokens; done += kGroupedTokens) {
      multiply_groups<kGroupedTokens>(tile, row, row_end, token + done,
                                      std::min(kGroupedTokens, tokens - done));
    }
    return;
  }
  if (tokens == 1) return multiply_whole<1>(tile, row, row_end, token, tokens);
  if (tokens == 2) return multiply_whole<2>(tile, row, row_end, token, tokens);
  if (tokens <= 4) return multiply_whole<4>(tile, row, row_end, token, tokens);
  if constexpr (kInputTile > 4) {
    if (tokens <= 8) return multiply_whole<8>(tile, row, row_end, token, tokens);
    multiply_whole<kInputTile>(tile, row, row_end, token, tokens);
  }
}

void multiply(const IntegerWeight& weight, const IntegerInput& input, const std::int32_t* sums,
              const std::uint8_t* prepared, std::int64_t tokens, const Output& y,
              std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t groups = std::max(weight.groups, input.groups);
  const PreparedInput ready(const_cast<std::uint8_t*>(prepared), tokens, weight.columns, groups);
  const Tile tile{weight, sums, ready, y, input.groups > 1};
  for (std::int64_t row = row_begin; row < row_end; row += kRowVectors * kLanes) {
    for (std::int64_t token = 0; token < tokens; token += kInputTile) {
      multiply_tile(tile, row, row_end, token,
                    static_cast<int>(std::min<std::int64_t>(kInputTile, tokens - token)));
    }
  }
}

}  // namespace

extern const IntegerKernel kIntegerKernel;
const IntegerKernel kIntegerKernel = {integer_prepared_bytes, integer_prepare, multiply, kInputTile,
                                      kRowTile};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::kernels
