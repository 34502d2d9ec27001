// SPDX-License-Identifier: Apache-2.0
// IQ2_XXS: 8 weights from a codebook of 256, signs with even parity, scales of 4 bits per 32.
//
// layout   66 bytes: [0:2] scale fp16, then for each group of 32 two words: four codebook indices;
// and four 7-bit sign
//          indices (bit 7 j for weights 8 j..) with the scale code in the top 4 bits
// value    scale * (0.5 + scale_code) * 0.25 * grid * sign
// bits     2.0625 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq2_xxs {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint32_t words[16];
  };
  static_assert(sizeof(Block) == 66);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t indices = block.words[2 * group];
      const std::uint32_t signs = block.words[2 * group + 1];
      const float group_scale = scale * (0.5f + static_cast<float>(signs >> 28)) * 0.25f;
      for (int j = 0; j < 4; ++j) {
        const std::uint64_t grid = kIq2XxsGrid[indices >> (8 * j) & 255];
        grid_values(grid, kSignParity[signs >> (7 * j) & 127], group_scale,
                    values + 32 * group + 8 * j);
      }
    }
  }

  static constexpr bool uses_codebook = true;
  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    std::uint64_t words[32];
    float scales[8];
    const float scale = half_to_float(block->scale);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t indices = block->words[2 * group];
      const std::uint32_t signs = block->words[2 * group + 1];
      scales[group] = scale * (0.5f + static_cast<float>(signs >> 28)) * 0.25f;
      for (int j = 0; j < 4; ++j) {
        words[4 * group + j] =
            signed_grid(kIq2XxsGrid[indices >> (8 * j) & 255], kSignParity[signs >> (7 * j) & 127]);
      }
    }
    for (int part = 0; part < 4; ++part)
      segment.codes[part] = simd::signed_codes(simd::load_codes(words + 8 * part));
    segment.scale = simd::load_groups_twice(scales);
    return segment;
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
