// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/integer_input.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "formats/float_bits.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Below this the inverse is not finite; such a range counts as zero.
constexpr float kSmallestScale = 0x1p-120f;
constexpr std::int32_t kInfinityBits = 0x7f800000;

// Columns [begin, end) of one token.
struct Span {
  const void* row;
  std::int64_t begin;
  std::int64_t end;
};

struct Range {
  float low;
  float high;
  bool is_finite;
};

struct Line {
  float scale;
  float inverse;
  float zero_point;
};

template <NumberType type>
inline Float load_values(const void* row, std::int64_t column) {
  if constexpr (type == NumberType::f32) {
    return simd::load(static_cast<const float*>(row) + column);
  } else {
    return simd::load_bfloat16(static_cast<const std::uint8_t*>(row) + 2 * column);
  }
}

// The last vector of a row, whose other lanes are zeros.
template <NumberType type>
inline Float load_some(const void* row, std::int64_t column, std::int64_t n) {
  constexpr std::int64_t kBytes = type == NumberType::f32 ? 4 : 2;
  std::uint8_t padded[kLanes * kBytes] = {};
  std::memcpy(padded, static_cast<const std::uint8_t*>(row) + column * kBytes,
              static_cast<std::size_t>(n * kBytes));
  return load_values<type>(padded, 0);
}

// Calls take(column, n, values) for vectors of a span; n < kLanes for the last of a ragged one.
template <NumberType type, typename Take>
[[gnu::always_inline]] inline void each_vector(const Span& span, Take take) {
  const std::int64_t whole = span.begin + (span.end - span.begin) / kLanes * kLanes;
  for (std::int64_t i = span.begin; i < whole; i += kLanes) {
    take(i, kLanes, load_values<type>(span.row, i));
  }
  if (whole < span.end) {
    const std::int64_t n = span.end - whole;
    take(whole, n, load_some<type>(span.row, whole, n));
  }
}

template <NumberType type>
bool is_finite(const Span& span) {
  // As bits, magnitudes are ordered as the numbers are, and what is not finite comes last.
  Int largest{};
  each_vector<type>(span, [&](std::int64_t, std::int64_t, Float x) {
    const Int bits = (Int)simd::absolute(x);
    largest = bits > largest ? bits : largest;
  });
  std::int32_t lanes[kLanes];
  simd::store_int(lanes, largest);
  return *std::max_element(lanes, lanes + kLanes) < kInfinityBits;
}

// Of a symmetric range `high` alone counts, the largest magnitude.
template <NumberType type, bool is_symmetric>
Range range_of(const Span& span) {
  constexpr int kApart = 4;  // each operation waits for the one before
  Float low[kApart] = {}, high[kApart] = {}, sums[kApart] = {};
  const auto take = [&](Float x, int i) {
    if constexpr (is_symmetric) {
      high[i] = simd::max(high[i], simd::absolute(x));
    } else {
      low[i] = simd::min(low[i], x);
      high[i] = simd::max(high[i], x);
    }
    sums[i] += x;
  };
  Span rest = span;
  for (; rest.begin + kApart * kLanes <= rest.end; rest.begin += kApart * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kApart; ++i) {
      take(load_values<type>(span.row, rest.begin + i * kLanes), i);
    }
  }
  each_vector<type>(rest, [&](std::int64_t, std::int64_t, Float x) { take(x, 0); });
  for (int i = 1; i < kApart; ++i) {
    low[0] = simd::min(low[0], low[i]);
    high[0] = simd::max(high[0], high[i]);
    sums[0] += sums[i];
  }
  // A sum of finite numbers may be infinite; one with an infinity or a NaN is never finite.
  return {-simd::max_lane(-low[0]), simd::max_lane(high[0]),
          std::isfinite(simd::sum(sums[0])) || is_finite<type>(span)};
}

Line line_of(const IntegerInput& input, const Range& range) {
  if (!range.is_finite) {
    const bool is_given = input.is_symmetric || input.is_static;
    return {std::numeric_limits<float>::quiet_NaN(), 0.0f, is_given ? input.zero_point : 0.0f};
  }
  Line line{input.scale, 0.0f, input.zero_point};
  if (!input.is_static) {
    const float width = range.high - range.low;
    line.scale = width / input.top;
  }
  if (line.scale > kSmallestScale) {
    line.inverse = 1.0f / line.scale;
  } else {
    line.scale = 0.0f;
  }
  if (!input.is_static && !input.is_symmetric) {
    line.zero_point = std::nearbyint(-range.low * line.inverse);
  }
  return line;
}

// Codes of a span to the place of its token in a tile; returns their sum. Only given ranges have
// numbers below them: of a dynamic one the lowest number's code is exact.
template <NumberType type, bool is_static>
std::int32_t put_codes(const Span& span, const IntegerInput& input, const Line& line,
                       std::uint32_t* tile) {
  const Float inverse = simd::broadcast(line.inverse);
  const Float lowest = simd::broadcast(input.lowest - line.zero_point);
  const Float highest = simd::broadcast(input.highest - line.zero_point);
  const Int zero_point =
      simd::broadcast(static_cast<std::int32_t>(line.zero_point) - simd::kInputBias);
  auto* bytes = reinterpret_cast<std::uint8_t*>(tile);
  constexpr std::int64_t kBlockColumns = 4 * kQuadBlock;
  Int sum{};
  std::int32_t uncounted = 0;
  // Cutting before rounding is cutting after it: the limits are whole numbers.
  const auto code_of = [&](Float x) {
    Float code = x * inverse;
    if constexpr (is_static) code = simd::max(code, lowest);
    return simd::round_to_int(simd::min(code, highest)) + zero_point;
  };
  const auto place_of = [&](std::int64_t column) {
    return bytes + column / kBlockColumns * (kBlockColumns * kInputTile) + column % kBlockColumns;
  };
  Span rest = span;
  if (span.begin % kBlockColumns == 0) {
    constexpr int kVectors = kBlockColumns / kLanes;
    for (; rest.begin + kBlockColumns <= rest.end; rest.begin += kBlockColumns) {
      Int codes[kVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        codes[i] = code_of(load_values<type>(span.row, rest.begin + i * kLanes));
        sum += codes[i];
      }
      simd::store_uint8_block(place_of(rest.begin), codes);
    }
  }
  each_vector<type>(rest, [&](std::int64_t column, std::int64_t n, Float x) {
    const Int code = code_of(x);
    sum += code;
    std::uint8_t* place = place_of(column);
    simd::store_uint8(place, code);
    // Columns past the end have no weight, and must not be counted either.
    for (std::int64_t i = n; i < kLanes; ++i) {
      uncounted += (place[i] ^ simd::kInputBias) - simd::kInputBias;
      place[i] = 0;
    }
  });
  std::int32_t lanes[kLanes];
  simd::store_int(lanes, sum);
  std::int32_t total = -uncounted;
  for (const std::int32_t lane : lanes) total += lane;
  return total;
}

template <NumberType type>
void prepare_tokens(const Activations& x, const IntegerInput& input, const PreparedInput& to,
                    std::int64_t token_begin, std::int64_t token_end) {
  const std::int64_t together = to.groups == 1 ? x.columns : x.columns / to.groups;
  constexpr std::int64_t kBytes = type == NumberType::f32 ? 4 : 2;
  const auto range = input.is_symmetric ? range_of<type, true> : range_of<type, false>;
  const auto put = input.is_static ? put_codes<type, true> : put_codes<type, false>;
  for (std::int64_t token = token_begin; token < token_end; ++token) {
    const std::uint8_t* row =
        static_cast<const std::uint8_t*>(x.values) + token * x.stride * kBytes;
    const std::int64_t tile = token / kInputTile;
    const std::int64_t place = token % kInputTile;
    std::uint32_t* codes = to.codes + tile * to.tile_words + place * kQuadBlock;
    Line line{};
    if (input.groups == 1) line = line_of(input, range({row, 0, x.columns}));
    for (std::int64_t group = 0; group < to.groups; ++group) {
      const Span span{row, group * together, (group + 1) * together};
      if (input.groups > 1) line = line_of(input, range(span));
      const std::int64_t index = (tile * to.groups + group) * kInputTile + place;
      to.scale[index] = line.scale;
      to.zero_point[index] = static_cast<std::int32_t>(line.zero_point) - simd::kInputBias;
      to.sums[index] = put(span, input, line, codes);
    }
  }
}

}  // namespace

std::size_t integer_prepared_bytes(std::int64_t tokens, std::int64_t columns, std::int64_t groups) {
  const PreparedInput places(nullptr, tokens, columns, groups);
  const std::int64_t tiles = (tokens + kInputTile - 1) / kInputTile;
  return static_cast<std::size_t>(tiles * (places.tile_words + 3 * groups * kInputTile)) * 4;
}

void integer_prepare(const Activations& x, const IntegerInput& input, std::int64_t groups,
                     std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  const PreparedInput to(prepared, x.tokens, x.columns, groups);
  if (x.type == NumberType::f32) {
    prepare_tokens<NumberType::f32>(x, input, to, token_begin, token_end);
  } else {
    prepare_tokens<NumberType::bf16>(x, input, to, token_begin, token_end);
  }
  // The last tile's other tokens may be computed too, and are thrown away: any codes will do, but
  // not unwritten memory.
  if (token_end < x.tokens || x.tokens % kInputTile == 0) return;
  const std::int64_t tile = x.tokens / kInputTile;
  for (std::int64_t place = x.tokens % kInputTile; place < kInputTile; ++place) {
    for (std::int64_t block = 0; block < to.tile_words; block += kQuadBlock * kInputTile) {
      std::fill_n(to.codes + tile * to.tile_words + block + place * kQuadBlock, kQuadBlock, 0u);
    }
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t index = (tile * groups + group) * kInputTile + place;
      to.scale[index] = 0.0f;
      to.zero_point[index] = 0;
      to.sums[index] = 0;
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
