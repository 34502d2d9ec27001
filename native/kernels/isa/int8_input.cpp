// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/int8_input.h"

#include <cstring>

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// 256 quantized columns of one token.
struct Quantized {
  alignas(64) std::int8_t codes[kSegment];
  float scale[8];
  std::int32_t sum16[16];
};

// scale = largest magnitude / 127, code = value / scale rounded to nearest even. A NaN makes the
// scale NaN, so that it is not lost in the integers.
float quantize_group(const float* x, std::int8_t* codes) {
  constexpr int kVectors = 32 / kLanes;
  Float values[kVectors];
  Float largest = simd::zero();
  Float poison = simd::zero();
  for (int i = 0; i < kVectors; ++i) {
    values[i] = simd::load(x + kLanes * i);
    largest = simd::max(largest, simd::absolute(values[i]));
    poison += values[i] * simd::zero();
  }
  const float scale = simd::max_lane(largest) / 127.0f;
  // Below this the inverse is not finite; such a group counts as zero.
  constexpr float kSmallestScale = 0x1p-120f;
  const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kVectors; ++i) {
    simd::store_int8(codes + kLanes * i, simd::round_to_int(values[i] * simd::broadcast(inverse)));
  }
  return (scale > kSmallestScale ? scale : 0.0f) + simd::sum(poison);
}

void quantize(const float* x, int columns, Quantized& result) {
  alignas(64) float padded[kSegment];
  if (columns < kSegment) {
    std::copy_n(x, columns, padded);
    std::fill(padded + columns, padded + kSegment, 0.0f);
    x = padded;
  }
  for (int group = 0; group < 8; ++group) {
    result.scale[group] = quantize_group(x + 32 * group, result.codes + 32 * group);
  }
  for (int group = 0; group < 16; ++group) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += result.codes[16 * group + i];
    result.sum16[group] = sum;
  }
}

void put(const Quantized& from, RowInput& to) {
  std::memcpy(to.codes, from.codes, sizeof(to.codes));
  for (int group = 0; group < 16; ++group) {
    const float scale = from.scale[group / 2];
    to.scale16[group] = scale;
    to.scaled_sum16[group] = scale * static_cast<float>(from.sum16[group]);
  }
  for (int group = 0; group < 8; ++group) {
    const std::int32_t sum = from.sum16[2 * group] + from.sum16[2 * group + 1];
    to.factors32[group] = from.scale[group];
    to.factors32[8 + group] = from.scale[group] * static_cast<float>(sum);
  }
}

template <int tile>
void put(const Quantized& from, int token, TileInput<tile>& to) {
  for (int quad = 0; quad < kSegment / 4; ++quad) {
    std::memcpy(&to.codes[quad][token], from.codes + 4 * quad, 4);
  }
  for (int group = 0; group < 16; ++group) to.sum16[group][token] = from.sum16[group];
  for (int group = 0; group < 8; ++group) {
    const std::int32_t sum = from.sum16[2 * group] + from.sum16[2 * group + 1];
    to.sum32[group][token] = sum;
    to.scale[group][token] = from.scale[group];
    to.scaled_sum[group][token] = from.scale[group] * static_cast<float>(sum);
  }
}

// Tokens for few tokens: three are computed as four.
std::int64_t stored_rows(std::int64_t tokens) { return tokens > 2 ? kFewTokens : tokens; }

Quantized quantized_segment(const float* x, std::int64_t columns, std::int64_t segment) {
  Quantized quantized{};
  if (x != nullptr) {
    quantize(x + segment * kSegment, segment_columns(columns, segment), quantized);
  }
  return quantized;
}

// Calls body(row of x, token) for the tokens that are stored from token_begin on; those that fill up
// the last tile are zeros, whose row is null.
template <typename Body>
void for_stored(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t stored,
                std::int64_t token_begin, std::int64_t token_end, Body body) {
  const std::int64_t end = token_end < tokens ? token_end : stored;
  for (std::int64_t token = token_begin; token < end; ++token) {
    body(token < tokens ? x + token * x_stride : nullptr, token);
  }
}

}  // namespace

template <bool is_interleaved>
std::size_t int8_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  const auto segments = static_cast<std::size_t>(segments_of(columns));
  if (!is_interleaved && tokens <= kFewTokens) {
    return static_cast<std::size_t>(stored_rows(tokens)) * segments * sizeof(RowInput);
  }
  return with_input_tile<is_interleaved>(tokens, [=]<int tile>() {
    return static_cast<std::size_t>(divide_up(tokens, tile)) * segments * sizeof(TileInput<tile>);
  });
}

template <bool is_interleaved>
void int8_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  const std::int64_t segments = segments_of(columns);
  if (!is_interleaved && tokens <= kFewTokens) {
    auto* rows = reinterpret_cast<RowInput*>(prepared);
    for_stored(x, x_stride, tokens, stored_rows(tokens), token_begin, token_end,
               [=](const float* row, std::int64_t token) {
                 for (std::int64_t segment = 0; segment < segments; ++segment) {
                   put(quantized_segment(row, columns, segment), rows[token * segments + segment]);
                 }
               });
    return;
  }
  with_input_tile<is_interleaved>(tokens, [=]<int tile>() {
    auto* tiles = reinterpret_cast<TileInput<tile>*>(prepared);
    const TileOrder order = is_interleaved && tokens <= kMostFewTokens
                                ? order_of_few(columns)
                                : order_of_many(tokens, tile);
    for_stored(x, x_stride, tokens, round_up(tokens, tile), token_begin, token_end,
               [=](const float* row, std::int64_t token) {
                 for (std::int64_t segment = 0; segment < segments; ++segment) {
                   put(quantized_segment(row, columns, segment), static_cast<int>(token % tile),
                       tiles[order.of(token / tile, segment)]);
                 }
               });
  });
}

template std::size_t int8_prepared_bytes<false>(std::int64_t, std::int64_t);
template std::size_t int8_prepared_bytes<true>(std::int64_t, std::int64_t);
template void int8_prepare<false>(const float*, std::int64_t, std::int64_t, std::int64_t,
                                  std::int64_t, std::int64_t, std::uint8_t*);
template void int8_prepare<true>(const float*, std::int64_t, std::int64_t, std::int64_t,
                                 std::int64_t, std::int64_t, std::uint8_t*);

}  // namespace lilliput::kernels::LILLIPUT_ISA
