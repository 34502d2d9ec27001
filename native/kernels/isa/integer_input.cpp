// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/integer_input.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/float_bits.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Columns that are converted and cut together.
constexpr std::int64_t kPiece = 256;
// Below this the inverse is not finite; such a range counts as zero.
constexpr float kSmallestScale = 0x1p-120f;

struct Range {
  float low;
  float high;
  float magnitude;
  float poison;  // 0, or NaN where a value is not finite
};

struct Line {
  float scale;
  float inverse;
  float zero_point;
};

void load_values(const void* row, NumberType type, std::int64_t begin, std::int64_t n,
                 float* values) {
  std::int64_t i = 0;
  if (type == NumberType::f32) {
    std::memcpy(values, static_cast<const float*>(row) + begin,
                static_cast<std::size_t>(n) * sizeof(float));
  } else {
    const auto* halves = static_cast<const std::uint8_t*>(row) + 2 * begin;
    for (; i + kLanes <= n; i += kLanes)
      simd::store(values + i, simd::load_bfloat16(halves + 2 * i));
    for (; i < n; ++i) {
      values[i] = formats::bfloat16_to_float(formats::load<std::uint16_t>(halves + 2 * i));
    }
  }
  std::fill(values + n, values + (n + kLanes - 1) / kLanes * kLanes, 0.0f);
}

// Values of a row piece: in place where they are whole vectors of floats.
const float* values_of(const void* row, NumberType type, std::int64_t begin, std::int64_t n,
                       float* room) {
  if (type == NumberType::f32 && n % kLanes == 0) return static_cast<const float*>(row) + begin;
  load_values(row, type, begin, n, room);
  return room;
}

template <bool is_symmetric>
Range range_of(const void* row, NumberType type, std::int64_t begin, std::int64_t end) {
  alignas(64) float room[kPiece];
  Float low = simd::zero(), high = simd::zero(), poison = simd::zero();
  for (std::int64_t first = begin; first < end; first += kPiece) {
    const std::int64_t n = std::min(kPiece, end - first);
    const float* values = values_of(row, type, first, n, room);
    for (std::int64_t i = 0; i < n; i += kLanes) {
      const Float x = simd::load(values + i);
      poison += x * simd::zero();
      high = simd::max(high, is_symmetric ? simd::absolute(x) : x);
      if constexpr (!is_symmetric) low = simd::min(low, x);
    }
  }
  const float largest = simd::max_lane(high);
  return {-simd::max_lane(-low), largest, largest, simd::sum(poison)};
}

Line line_of(const IntegerInput& input, const Range& range) {
  Line line{input.scale, 0.0f, input.zero_point};
  if (!input.is_static) {
    const float width = input.is_symmetric ? range.magnitude : range.high - range.low;
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
  if (!(range.poison == 0.0f)) {
    line = {std::numeric_limits<float>::quiet_NaN(), 0.0f,
            input.is_symmetric || input.is_static ? input.zero_point : 0.0f};
  }
  return line;
}

// Codes of columns [begin, end) of a row, four together, `kInputTile` words apart; their sum.
std::int32_t put_codes(const void* row, NumberType type, std::int64_t begin, std::int64_t end,
                       const IntegerInput& input, const Line& line, std::uint32_t* out) {
  alignas(64) float room[kPiece];
  alignas(64) std::uint8_t codes[kPiece];
  const Float inverse = simd::broadcast(line.inverse);
  const Float lowest = simd::broadcast(input.lowest - line.zero_point);
  const Float highest = simd::broadcast(input.highest - line.zero_point);
  const Int zero_point = simd::broadcast(static_cast<std::int32_t>(line.zero_point));
  Int sum{};
  for (std::int64_t first = begin; first < end; first += kPiece) {
    const std::int64_t n = std::min(kPiece, end - first);
    const float* values = values_of(row, type, first, n, room);
    for (std::int64_t i = 0; i < n; i += kLanes) {
      // Cutting before rounding is cutting after it: the limits are whole numbers.
      const Float scaled = simd::load(values + i) * inverse;
      const Float cut = simd::min(simd::max(scaled, lowest), highest);
      const Int code = simd::round_to_int(cut) + zero_point;
      sum += code;
      simd::store_uint8(codes + i, code);
    }
    // Columns that fill up the last four have no weight: their codes must not be counted either.
    const std::int64_t whole = (n + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t i = n; i < whole; ++i) {
      reinterpret_cast<std::int32_t*>(&sum)[0] -= codes[i];
      codes[i] = 0;
    }
    std::uint32_t* place = out + (first - begin) / 4 * kInputTile;
    for (std::int64_t quad = 0; quad < (n + 3) / 4; ++quad) {
      std::memcpy(place + quad * kInputTile, codes + 4 * quad, 4);
    }
  }
  std::int32_t lanes[kLanes];
  simd::store_int(lanes, sum);
  std::int32_t total = 0;
  for (const std::int32_t lane : lanes) total += lane;
  return total;
}

}  // namespace

std::size_t integer_prepared_bytes(std::int64_t tokens, std::int64_t columns, std::int64_t groups) {
  const std::int64_t tiles = (tokens + kInputTile - 1) / kInputTile;
  return static_cast<std::size_t>(tiles * kInputTile * ((columns + 3) / 4 + 3 * groups)) * 4;
}

void integer_prepare(const Activations& x, const IntegerInput& input, std::int64_t groups,
                     std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  const PreparedInput to(prepared, x.tokens, x.columns, groups);
  const std::int64_t together = groups == 1 ? x.columns : x.columns / groups;
  const std::size_t value_bytes = x.type == NumberType::f32 ? 4 : 2;
  const auto range = input.is_symmetric ? range_of<true> : range_of<false>;
  for (std::int64_t token = token_begin; token < token_end; ++token) {
    const std::uint8_t* row = static_cast<const std::uint8_t*>(x.values) +
                              static_cast<std::size_t>(token * x.stride) * value_bytes;
    const std::int64_t tile = token / kInputTile;
    const std::int64_t place = token % kInputTile;
    Line line{};
    if (input.groups == 1) line = line_of(input, range(row, x.type, 0, x.columns));
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t begin = group * together;
      if (input.groups > 1) line = line_of(input, range(row, x.type, begin, begin + together));
      const std::int64_t index = (tile * groups + group) * kInputTile + place;
      to.scale[index] = line.scale;
      to.zero_point[index] = static_cast<std::int32_t>(line.zero_point);
      to.sums[index] = put_codes(row, x.type, begin, begin + together, input, line,
                                 to.codes + (tile * to.quads + begin / 4) * kInputTile + place);
    }
  }
  // The last tile's other tokens are computed too, and thrown away.
  if (token_end < x.tokens) return;
  for (std::int64_t token = x.tokens; token % kInputTile != 0; ++token) {
    const std::int64_t tile = token / kInputTile;
    const std::int64_t place = token % kInputTile;
    for (std::int64_t quad = 0; quad < to.quads; ++quad) {
      to.codes[(tile * to.quads + quad) * kInputTile + place] = 0;
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
