// SPDX-License-Identifier: Apache-2.0
// Activations as int8 codes with one float scale per 32: value = scale * code, code within
// -127..127.
#pragma once

#include "kernels/isa/tiling.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// 256 columns of one token, for few tokens; [token][segment]. Twice by group, so that formats with
// groups of 16 and of 32 both find one factor per group; entries 8..15 of the groups of 32 are 0.
struct alignas(64) RowInput {
  std::int8_t codes[kSegment];
  float scale32[16];
  float scaled_sum32[16];  // scale * sum of the codes
  float scale16[16];
  float scaled_sum16[16];
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
