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
constexpr int kGroupedTokens = simd::kRegisters == 32 ? 6 : 2;
constexpr int kLineBytes = kPanelRows * 4;
constexpr std::int64_t kFewTiles = 4;

// Weights that the next rows will need, asked for a few lines at a time while these rows are busy:
// every tile of tokens fetches a share of them.
struct Ahead {
  const std::int8_t* line;
  std::int64_t lines_per_block;  // of quads
};

// One call of a tile: which rows, tokens, and where results go.
struct Tile {
  const IntegerWeight& weight;
  const IntegerInput& kind;
  const std::int32_t* sums;  // of the weight's codes
  const PreparedInput& input;
  const Output& y;
  Ahead ahead;
  // All tokens have one zero point.
  bool is_centred() const { return kind.is_symmetric || kind.is_static; }
};

inline std::int64_t panel_of(std::int64_t row) { return row / kPanelRows; }
inline std::int64_t lane_of(std::int64_t row) { return row % kPanelRows; }

inline void find_lines(const Tile& tile, std::int64_t row,
                       const std::int8_t* (&lines)[kRowVectors]) {
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    lines[r] =
        tile.weight.panels + panel_of(first) * tile.input.quads * kLineBytes + lane_of(first) * 4;
  }
}

// Adds the dots of quads [begin, end). codes: of the tile's first token.
template <int n_tokens>
inline void add_dots(const std::int8_t* const (&lines)[kRowVectors], const std::uint32_t* codes,
                     std::int64_t begin, std::int64_t end, Ahead ahead,
                     Int (&dots)[kRowVectors][n_tokens]) {
  const std::int8_t* fetched = ahead.line + begin / kQuadBlock * ahead.lines_per_block * kLineBytes;
#pragma GCC unroll 1
  for (std::int64_t first = begin; first < end;) {
    const std::int64_t block = first / kQuadBlock;
    const std::int64_t stop = std::min(end, (block + 1) * kQuadBlock);
    const std::uint32_t* inputs = codes + block * (kQuadBlock * kInputTile) + first % kQuadBlock;
    for (std::int64_t i = 0; i < ahead.lines_per_block; ++i, fetched += kLineBytes) {
      __builtin_prefetch(fetched, 0, 2);
    }
#pragma GCC unroll 1
    for (; first < stop; ++first, ++inputs) {
      Int weights[kRowVectors];
#pragma GCC unroll 2
      for (int r = 0; r < kRowVectors; ++r) {
        weights[r] = simd::load_int(lines[r] + first * kLineBytes);
      }
#pragma GCC unroll 12
      for (int t = 0; t < n_tokens; ++t) {
        const Int code = simd::broadcast(static_cast<std::int32_t>(inputs[t * kQuadBlock]));
#pragma GCC unroll 2
        for (int r = 0; r < kRowVectors; ++r) {
          dots[r][t] = simd::dot_bytes(dots[r][t], code, weights[r]);
        }
      }
    }
  }
}

// What the zero points add to the dots of one group, so that the sum is exact from the start.
template <int n_vectors, int n_tokens>
inline void start_dots(const Tile& tile, std::int64_t row, std::int64_t group, std::int64_t index,
                       Int (&dots)[n_vectors][n_tokens]) {
  const IntegerWeight& weight = tile.weight;
  const std::int32_t* zero_points = tile.input.zero_point + index;
#pragma GCC unroll 4
  for (int r = 0; r < n_vectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    const Int sums = simd::load_int(
        tile.sums + (panel_of(first) * tile.input.groups + group) * kPanelRows + lane_of(first));
    if (tile.is_centred()) {
      const Int start = sums * -zero_points[0];
#pragma GCC unroll 12
      for (int t = 0; t < n_tokens; ++t) dots[r][t] = start;
    } else {
#pragma GCC unroll 12
      for (int t = 0; t < n_tokens; ++t) dots[r][t] = sums * -zero_points[t];
    }
  }
  if (weight.zero_point == nullptr) return;
  const std::int32_t* code_sums = tile.input.sums + index;
#pragma GCC unroll 4
  for (int r = 0; r < n_vectors; ++r) {
    const std::int64_t first = row + r * kLanes;
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

// The bias of a vector of rows, of which `n` exist.
inline Float bias_of(const Output& y, std::int64_t row, int n) {
  if (n == kLanes) return simd::load(y.bias + row);
  float values[kLanes] = {};
  std::copy_n(y.bias + row, n, values);
  return simd::load(values);
}

// x's part of the normal distribution, 0.5 x (1 + erf(x / sqrt(2))) = max(x, 0) - |x| tail(|x|). The
// second is a polynomial in |x| - 2.25 up to 4.5, and below 2e-5 beyond.
inline Float gelu(Float x) {
  constexpr float kEnd = 4.5f;
  const Float v =
      simd::min(simd::broadcast(kEnd), simd::absolute(x)) - simd::broadcast(kEnd / 2.0f);
  Float p = simd::broadcast(-1.28070587e-5f);
#pragma GCC unroll 10
  for (const float coefficient :
       {1.47388782e-5f, 2.68528325e-4f, -6.03964727e-4f, -1.57929084e-3f, 7.53977383e-3f,
        -7.91950617e-3f, -1.29242959e-2f, 4.87096086e-2f, -5.91286682e-2f, 2.74971332e-2f}) {
    p = simd::fma(p, v, simd::broadcast(coefficient));
  }
  return simd::max(simd::zero(), x) - p;
}

template <int n>
inline void finish_results(Finish finish, Float (&results)[n]) {
  if (finish == Finish::gelu) {
#pragma GCC unroll 12
    for (Float& result : results) result = gelu(result);
  } else if (finish == Finish::relu) {
#pragma GCC unroll 12
    for (Float& result : results) result = simd::max(simd::zero(), result);
  }
}

// Results of one vector of rows: sums as they are, times the tokens' scale where it is still to
// come, plus the bias.
template <int n_tokens, bool has_bias, bool is_scaled>
inline void put_tokens(const Tile& tile, std::int64_t row, int n, std::int64_t token, int tokens,
                       const float* input_scale, const Float (&sums)[n_tokens]) {
  const Output& y = tile.y;
  Float bias = simd::zero();
  if constexpr (has_bias) bias = bias_of(y, row, n);
  Float results[n_tokens];
#pragma GCC unroll 12
  for (int t = 0; t < n_tokens; ++t) {
    results[t] = sums[t];
    if constexpr (!is_scaled) results[t] *= simd::broadcast(input_scale[t]);
    if constexpr (has_bias) results[t] += bias;
  }
  finish_results(y.finish, results);
  const bool is_whole = y.type == NumberType::f32 && n == kLanes && tokens == n_tokens;
  float* out = static_cast<float*>(y.values) + token * y.stride + row;
#pragma GCC unroll 12
  for (int t = 0; t < n_tokens; ++t) {
    if (is_whole) {
      simd::store(out + t * y.stride, results[t]);
    } else if (t < tokens) {
      put(y, token + t, row, n, results[t]);
    }
  }
}

template <int n_tokens, bool is_scaled>
inline void finish(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                   int tokens, const float* input_scale,
                   const Float (&results)[kRowVectors][n_tokens]) {
#pragma GCC unroll 2
  for (int r = 0; r < kRowVectors; ++r) {
    const std::int64_t first = row + r * kLanes;
    const int n = static_cast<int>(std::min<std::int64_t>(kLanes, row_end - first));
    if (n <= 0) return;
    if (tile.y.bias != nullptr) {
      put_tokens<n_tokens, true, is_scaled>(tile, first, n, token, tokens, input_scale, results[r]);
    } else {
      put_tokens<n_tokens, false, is_scaled>(tile, first, n, token, tokens, input_scale,
                                             results[r]);
    }
  }
}

// Asks for the lines that results will be written to: they would be waited for at the end.
inline void fetch_output(const Output& y, std::int64_t row, std::int64_t token, int tokens) {
  const std::int64_t bytes = y.type == NumberType::f32 ? 4 : 2;
  const auto* first = static_cast<const std::uint8_t*>(y.values) + (token * y.stride + row) * bytes;
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < kRowVectors; ++r) {
      __builtin_prefetch(first + (t * y.stride + r * kLanes) * bytes, 1, 2);
    }
  }
}

// One group: the rows' scale and the tokens' meet the sum once.
template <int n_tokens>
void multiply_whole(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                    int tokens) {
  const PreparedInput& input = tile.input;
  const std::int8_t* lines[kRowVectors];
  find_lines(tile, row, lines);
  fetch_output(tile.y, row, token, tokens);
  Int dots[kRowVectors][n_tokens];
  start_dots(tile, row, 0, token, dots);
  add_dots(lines, input.codes + token / kInputTile * input.tile_words, 0, input.quads, tile.ahead,
           dots);
  Float results[kRowVectors][n_tokens];
#pragma GCC unroll 2
  for (int r = 0; r < kRowVectors; ++r) {
    const Float scale = scale_of(tile.weight, row + r * kLanes, 0);
#pragma GCC unroll 12
    for (int t = 0; t < n_tokens; ++t) results[r][t] = simd::to_float(dots[r][t]) * scale;
  }
  finish<n_tokens, false>(tile, row, row_end, token, tokens, input.scale + token, results);
}

// Dots of one panel of rows and one token. Neighbouring quads are summed apart, as a dot product
// takes four cycles and one can begin in each; lines come in the order in which they lie, which the
// processor fetches ahead by itself.
template <int n_vectors>
inline void add_dots_of_one(const std::int8_t* lines, const std::uint32_t* codes,
                            std::int64_t quads, Int (&dots)[n_vectors][1]) {
  constexpr int kApart = 4;
  static_assert(kQuadBlock % kApart == 0);
  Int sums[kApart][n_vectors] = {};
  const auto add = [&](std::int64_t quad, int i) {
    const std::uint32_t* input = codes + quad / kQuadBlock * (kQuadBlock * kInputTile);
    const Int code = simd::broadcast(static_cast<std::int32_t>(input[quad % kQuadBlock]));
#pragma GCC unroll 4
    for (int v = 0; v < n_vectors; ++v) {
      const std::int8_t* weights = lines + quad * kLineBytes + v * kLanes * 4;
      sums[i][v] = simd::dot_bytes(sums[i][v], code, simd::load_int(weights));
    }
  };
  std::int64_t quad = 0;
#pragma GCC unroll 1
  for (; quad + kQuadBlock <= quads; quad += kQuadBlock) {
#pragma GCC unroll 16
    for (int i = 0; i < kQuadBlock; ++i) add(quad + i, i % kApart);
  }
  for (; quad < quads; ++quad) add(quad, 0);
#pragma GCC unroll 4
  for (int v = 0; v < n_vectors; ++v) {
    dots[v][0] += (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
  }
}

// One token, one group: a pass over the weights as fast as memory gives them.
void multiply_one(const Tile& tile, std::int64_t row_begin, std::int64_t row_end) {
  constexpr int kVectors = kPanelRows / kLanes;
  const PreparedInput& input = tile.input;
  for (std::int64_t row = row_begin; row < row_end; row += kPanelRows) {
    Int dots[kVectors][1];
    start_dots(tile, row, 0, 0, dots);
    add_dots_of_one(tile.weight.panels + panel_of(row) * input.quads * kLineBytes, input.codes,
                    input.quads, dots);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t first = row + v * kLanes;
      const int n = static_cast<int>(std::min<std::int64_t>(kLanes, row_end - first));
      if (n <= 0) break;
      Float result[1] = {simd::to_float(dots[v][0]) * scale_of(tile.weight, first, 0)};
      result[0] *= simd::broadcast(input.scale[0]);
      if (tile.y.bias != nullptr) result[0] += bias_of(tile.y, first, n);
      finish_results(tile.y.finish, result);
      put(tile.y, 0, first, n, result[0]);
    }
  }
}

// Several groups, each with a scale of the rows, of the tokens, or of both.
template <int n_tokens, bool has_input_groups>
void multiply_groups(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                     int tokens) {
  const PreparedInput& input = tile.input;
  const std::int64_t in_tile = token % kInputTile;
  const std::int64_t quads = input.quads / input.groups;
  const std::int8_t* lines[kRowVectors];
  find_lines(tile, row, lines);
  const std::uint32_t* codes =
      input.codes + token / kInputTile * input.tile_words + in_tile * kQuadBlock;
  const std::int64_t first = token / kInputTile * input.groups * kInputTile + in_tile;
  Float results[kRowVectors][n_tokens];
  for (std::int64_t group = 0; group < input.groups; ++group) {
    const std::int64_t index = first + group * kInputTile;
    Int dots[kRowVectors][n_tokens];
    start_dots(tile, row, group, index, dots);
    add_dots(lines, codes, group * quads, (group + 1) * quads, tile.ahead, dots);
#pragma GCC unroll 2
    for (int r = 0; r < kRowVectors; ++r) {
      const Float scale = scale_of(tile.weight, row + r * kLanes, group);
#pragma GCC unroll 12
      for (int t = 0; t < n_tokens; ++t) {
        Float part = simd::to_float(dots[r][t]) * scale;
        if constexpr (has_input_groups) part *= simd::broadcast(input.scale[index + t]);
        results[r][t] = group == 0 ? part : results[r][t] + part;
      }
    }
  }
  finish<n_tokens, has_input_groups>(tile, row, row_end, token, tokens, input.scale + first,
                                     results);
}

void multiply_tile(const Tile& tile, std::int64_t row, std::int64_t row_end, std::int64_t token,
                   int tokens) {
  if (tile.input.groups > 1) {
    for (int done = 0; done < tokens; done += kGroupedTokens) {
      const int n = std::min(kGroupedTokens, tokens - done);
      if (tile.kind.groups > 1) {
        multiply_groups<kGroupedTokens, true>(tile, row, row_end, token + done, n);
      } else {
        multiply_groups<kGroupedTokens, false>(tile, row, row_end, token + done, n);
      }
    }
    return;
  }
  // The last token of several.
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
  const std::int64_t tiles = (tokens + kInputTile - 1) / kInputTile;
  // Of few tokens the weights are met once, in order, which the processor foresees by itself.
  const std::int64_t per_block =
      tiles < kFewTiles ? 0
                        : (kRowVectors * kLanes * kQuadBlock * 4 / kLineBytes + tiles - 1) / tiles;
  const std::int64_t blocks = (ready.quads + kQuadBlock - 1) / kQuadBlock;
  Tile tile{weight, input, sums, ready, y, {weight.panels, per_block}};
  if (tokens == 1 && groups == 1) return multiply_one(tile, row_begin, row_end);
  for (std::int64_t row = row_begin; row < row_end; row += kRowVectors * kLanes) {
    const std::int64_t next = row + kRowVectors * kLanes;
    for (std::int64_t token = 0; token < tokens; token += kInputTile) {
      // Past the end of the weight a fetch is harmless.
      tile.ahead.line = weight.panels + panel_of(next) * ready.quads * kLineBytes +
                        token / kInputTile * blocks * per_block * kLineBytes;
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
