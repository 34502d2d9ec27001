// SPDX-License-Identifier: Apache-2.0
// Activations as int8 codes with one float scale per 32: value = scale * code, code within
// -127..127.
#pragma once

#include "kernels/isa/tiling.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// 256 columns of one token, for few tokens; [token][segment]. Factors for formats with groups of 32
// and of 16, in the order of simd::Segment's parameters.
struct alignas(64) RowInput {
  std::int8_t codes[kSegment];
  float factors32[16];     // 8 scales, then 8 times scale * sum of the codes
  float scale16[16];       // of the 32 columns that the group is half of
  float scaled_sum16[16];  // scale * sum of the codes
};

// 256 columns of kTokenTile tokens, for many tokens; [tile][segment].
struct alignas(64) TileInput {
  std::int32_t codes[kSegment / 4][kTokenTile];  // four codes of consecutive columns
  float scale[8][kTokenTile];
  float scaled_sum[8][kTokenTile];
  std::int32_t sum32[8][kTokenTile];
  std::int32_t sum16[16][kTokenTile];
};

std::size_t int8_prepared_bytes(std::int64_t tokens, std::int64_t columns);
void int8_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);

}  // namespace lilliput::kernels::LILLIPUT_ISA
