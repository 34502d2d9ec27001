// SPDX-License-Identifier: Apache-2.0
// Activations as int8 codes with one float scale per 32: value = scale * code, code within
// -127..127.
#pragma once

#include "kernels/isa/tiling.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// 256 columns of one token, for few tokens and weights as they are stored; [token][segment]. Factors for formats with groups of 32
// and of 16, in the order of simd::Segment's parameters.
struct alignas(64) RowInput {
  std::int8_t codes[kSegment];
  float factors32[16];     // 8 scales, then 8 times scale * sum of the codes
  float scale16[16];       // of the 32 columns that the group is half of
  float scaled_sum16[16];  // scale * sum of the codes
};

// 256 columns of `tile` tokens, in a TileOrder.
template <int tile>
struct alignas(64) TileInput {
  std::int32_t codes[kSegment / 4][tile];  // four codes of consecutive columns
  float scale[8][tile];
  float scaled_sum[8][tile];
  std::int32_t sum32[8][tile];
  std::int32_t sum16[16][tile];
};

// More tokens than this share the codes that are unpacked of interleaved weights.
inline constexpr std::int64_t kMostFewTokens = kLanes == 16 ? 18 : 8;

// Calls body.operator()<tile>() with the tokens of a tile. Of weights as they are stored, few tokens
// take RowInput instead.
template <bool is_interleaved, typename Body>
auto with_input_tile(std::int64_t tokens, Body body) {
  if (!is_interleaved) return body.template operator()<kTokenTile>();
  if (tokens == 1) return body.template operator()<1>();
  if (tokens == 2) return body.template operator()<2>();
  // Whichever leaves less of the last tile empty.
  const bool fills_fours =
      tokens <= kMostFewTokens && round_up(tokens, 4) < round_up(tokens, kTokenTile);
  if (tokens <= 4 || fills_fours) return body.template operator()<4>();
  return body.template operator()<kTokenTile>();
}

template <bool is_interleaved>
std::size_t int8_prepared_bytes(std::int64_t tokens, std::int64_t columns);
template <bool is_interleaved>
void int8_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);

}  // namespace lilliput::kernels::LILLIPUT_ISA
