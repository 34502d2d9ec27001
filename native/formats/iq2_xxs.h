// SPDX-License-Identifier: Apache-2.0
// IQ2_XXS: 8 weights from a codebook of 256, signs with even parity, scales of 4 bits per 32.
//
// layout   66 bytes: [0:2] scale fp16, then for each group of 32 two words: four codebook indices;
//          and four 7-bit sign indices (bit 7 j for weights 8 j..) with the scale code in the top 4
//          bits
// value    scale * (0.5 + scale_code) * 0.25 * grid * sign
// bits     2.0625 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "formats/spelled_codes.h"
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

  static std::uint16_t block_scale(const Block& block) { return block.scale; }
  static int scale_code(const Block& block, int group) {
    return static_cast<int>(block.words[2 * group + 1] >> 28);
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t indices = block.words[2 * group];
      const std::uint32_t signs = block.words[2 * group + 1];
      const float group_scale =
          scale * (0.5f + static_cast<float>(scale_code(block, group))) * 0.25f;
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
    std::uint64_t scale_codes = 0;
    for (int part = 0; part < 4; ++part) {
      std::uint64_t grid[8];
      std::uint64_t signs = 0;
      for (int j = 0; j < 8; ++j) {
        const int group = 2 * part + j / 4;
        const std::uint32_t word = block->words[2 * group + 1];
        grid[j] = kIq2XxsGrid[block->words[2 * group] >> (8 * (j % 4)) & 255];
        signs |= std::uint64_t{kSignParity[word >> (7 * (j % 4)) & 127]} << (8 * j);
        if (j % 4 == 0) scale_codes |= static_cast<std::uint64_t>(word >> 28) << (4 * group);
      }
      segment.codes[part] = signed_grid_codes(grid, signs);
    }
    const simd::Groups codes = simd::nibble_groups(scale_codes | scale_codes << 32);
    segment.scale = (codes - -0.5f) * half_to_float(block->scale) * 0.25f;
    return segment;
  }
  // Written out in memory, 3 bits a weight.
  using Spelled = SpelledBlock<3, 8>;
  static constexpr std::array<std::int8_t, 16> spelled_values = with_signs(kIq2XxsValues, 4);
  static constexpr float spelled_unit = 0.125f;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    SpelledCodes<iq2_xxs>::unpack_rows(words, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
