// SPDX-License-Identifier: Apache-2.0
// IQ3_XXS: 4 weights from a codebook of 256, signs with even parity over 8, scales of 4 bits
// per 32.
//
// layout   98 bytes: [0:2] scale fp16, [2:66] codebook indices, [66:98] a word per group of 32:
// four 7-bit sign indices
//          with the scale code in the top 4 bits
// value    scale * (0.5 + scale_code) * 0.5 * grid * sign
// bits     3.0625 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq3_xxs {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t indices[64];
    std::uint32_t signs[8];
  };
  static_assert(sizeof(Block) == 98);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t signs = block.signs[group];
      const float group_scale = scale * (0.5f + static_cast<float>(signs >> 28)) * 0.5f;
      for (int j = 0; j < 4; ++j) {
        const std::uint8_t* index = block.indices + 8 * group + 2 * j;
        const std::uint64_t grid =
            kIq3XxsGrid[index[0]] | static_cast<std::uint64_t>(kIq3XxsGrid[index[1]]) << 32;
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
      const std::uint32_t signs = block->signs[group];
      scales[group] = scale * (0.5f + static_cast<float>(signs >> 28)) * 0.5f;
      for (int j = 0; j < 4; ++j) {
        const std::uint8_t* index = block->indices + 8 * group + 2 * j;
        const std::uint64_t grid =
            kIq3XxsGrid[index[0]] | static_cast<std::uint64_t>(kIq3XxsGrid[index[1]]) << 32;
        words[4 * group + j] = signed_grid(grid, kSignParity[signs >> (7 * j) & 127]);
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
