// SPDX-License-Identifier: Apache-2.0
// IQ1_S: 8 weights of -1, 0, 1 from a codebook of 2048, shifted by 1/8, scales of 3 bits per 32.
//
// layout   50 bytes: [0:2] scale fp16, [2:34] low 8 bits of the indices, [34:50] a word per group
//          of 32: bits 3 j..3 j + 2 the high bits of index j, bits 12..14 the scale code, bit 15
//          the sign of the shift
// value    scale * (2 * scale_code + 1) * (grid + shift), shift = +-0.125
// bits     1.5625 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "formats/spelled_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq1_s {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t indices_low[32];
    std::uint16_t groups[8];
  };
  static_assert(sizeof(Block) == 50);

  static std::uint16_t block_scale(const Block& block) { return block.scale; }
  static int scale_code(const Block& block, int group) { return block.groups[group] >> 12 & 7; }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t word = block.groups[group];
      const float group_scale = scale * static_cast<float>(2 * scale_code(block, group) + 1);
      const float shift = word & 0x8000u ? -0.125f : 0.125f;
      for (int j = 0; j < 4; ++j) {
        const std::uint64_t grid =
            kIq1Grid[block.indices_low[4 * group + j] | (word >> (3 * j) & 7) << 8];
        shifted_grid_values(grid, shift, group_scale, values + 32 * group + 8 * j);
      }
    }
  }

  static constexpr bool uses_codebook = true;
  static constexpr int group_size = 32;
  static constexpr int zero_point = 9;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    // Codes are 8 * level + 9 + 8 * shift, so that weight = scale / 8 * (code - 9).
    simd::Segment segment;
    float scales[8];
    const float scale = half_to_float(block->scale);
    for (int part = 0; part < 4; ++part) {
      std::uint64_t codes[8];
      for (int j = 0; j < 8; ++j) {
        const int group = 2 * part + j / 4;
        const std::uint32_t word = block->groups[group];
        const int high = static_cast<int>(word >> (3 * (j % 4)) & 7) << 8;
        codes[j] =
            shifted_grid(kIq1Grid[block->indices_low[8 * part + j] | high], (word & 0x8000u) != 0);
        if (j % 4 == 0)
          scales[group] = scale * static_cast<float>(2 * (word >> 12 & 7) + 1) * 0.125f;
      }
      segment.codes[part] = simd::word_codes(codes);
    }
    segment.scale = simd::load_groups_twice(scales);
    return segment;
  }
  // Written out in memory, 3 bits a weight.
  using Spelled = SpelledBlock<3, 8>;
  static constexpr std::array<std::int8_t, 16> spelled_values = {-7, 1, 9, 0, -9, -1, 7};
  static constexpr float spelled_unit = 0.125f;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    SpelledCodes<iq1_s>::unpack_rows(words, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
