// SPDX-License-Identifier: Apache-2.0
// IQ2_S: 8 weights from a codebook of 1024, free signs, scales of 4 bits per 16.
//
// layout   82 bytes: [0:2] scale fp16, [2:34] low 8 bits of the indices, [34:66] sign bits, [66:74]
//          high 2 bits of the indices, four to a byte, [74:82] scale codes, nibble g for group g
// value    scale * (0.5 + scale_code) * 0.25 * grid * sign
// bits     2.5625 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "formats/spelled_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq2_s {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t indices_low[32];
    std::uint8_t signs[32];
    std::uint8_t indices_high[8];
    std::uint8_t scale_codes[8];
  };
  static_assert(sizeof(Block) == 82);

  static std::uint16_t block_scale(const Block& block) { return block.scale; }
  static int scale_code(const Block& block, int group) {
    return block.scale_codes[group / 2] >> (4 * (group % 2)) & 15;
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 16; ++group) {
      const int code = scale_code(block, group);
      const float group_scale = scale * (0.5f + static_cast<float>(code)) * 0.25f;
      for (int j = 2 * group; j < 2 * group + 2; ++j) {
        const int high = block.indices_high[j / 4] >> (2 * (j % 4)) & 3;
        grid_values(kIq2SGrid[block.indices_low[j] | high << 8], block.signs[j], group_scale,
                    values + 8 * j);
      }
    }
  }

  static constexpr bool uses_codebook = true;
  static constexpr int group_size = 16;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const int high = block->indices_high[2 * part] | block->indices_high[2 * part + 1] << 8;
      std::uint64_t grid[8];
      for (int j = 0; j < 8; ++j) {
        grid[j] = kIq2SGrid[block->indices_low[8 * part + j] | (high >> (2 * j) & 3) << 8];
      }
      segment.codes[part] = signed_grid_codes(grid, load<std::uint64_t>(block->signs + 8 * part));
    }
    const simd::Groups codes = simd::nibble_groups(load<std::uint64_t>(block->scale_codes));
    segment.scale = (codes - -0.5f) * half_to_float(block->scale) * 0.25f;
    return segment;
  }
  // Written out in memory, 3 bits a weight.
  using Spelled = SpelledBlock<3, 16>;
  static constexpr std::array<std::int8_t, 16> spelled_values = with_signs(kIq2SValues, 4);
  static constexpr float spelled_unit = 0.125f;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    SpelledCodes<iq2_s>::unpack_rows(words, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
