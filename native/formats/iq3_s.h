// SPDX-License-Identifier: Apache-2.0
// IQ3_S: 4 weights from a codebook of 512, free signs, scales of 4 bits per 32.
//
// layout   110 bytes: [0:2] scale fp16, [2:66] low 8 bits of the indices, [66:74] ninth bits, bit j
//          of the 64, [74:106] sign bits, [106:110] scale codes, nibble g for group g
// value    scale * (1 + 2 * scale_code) * grid * sign
// bits     3.4375 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "formats/spelled_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq3_s {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t indices_low[64];
    std::uint8_t indices_high[8];
    std::uint8_t signs[32];
    std::uint8_t scale_codes[4];
  };
  static_assert(sizeof(Block) == 110);

  static std::uint16_t block_scale(const Block& block) { return block.scale; }
  static int scale_code(const Block& block, int group) {
    return block.scale_codes[group / 2] >> (4 * (group % 2)) & 15;
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const float group_scale = scale * static_cast<float>(1 + 2 * scale_code(block, group));
      for (int j = 0; j < 4; ++j) {
        const int pair = 8 * group + 2 * j;
        const int high = block.indices_high[group] >> (2 * j);
        const std::uint64_t first = kIq3SGrid[block.indices_low[pair] | (high & 1) << 8];
        const std::uint64_t second = kIq3SGrid[block.indices_low[pair + 1] | (high >> 1 & 1) << 8];
        grid_values(first | second << 32, block.signs[4 * group + j], group_scale,
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
    for (int part = 0; part < 4; ++part) {
      const int high = block->indices_high[2 * part] | block->indices_high[2 * part + 1] << 8;
      std::uint64_t grid[8];
      for (int j = 0; j < 8; ++j) {
        const std::uint8_t* low = block->indices_low + 16 * part + 2 * j;
        const std::uint64_t first = kIq3SGrid[low[0] | (high >> (2 * j) & 1) << 8];
        const std::uint64_t second = kIq3SGrid[low[1] | (high >> (2 * j + 1) & 1) << 8];
        grid[j] = first | second << 32;
      }
      segment.codes[part] = signed_grid_codes(grid, load<std::uint64_t>(block->signs + 8 * part));
    }
    const auto scale_codes = std::uint64_t{load<std::uint32_t>(block->scale_codes)};
    const simd::Groups codes = simd::nibble_groups(scale_codes | scale_codes << 32);
    segment.scale = (codes * 2.0f - -1.0f) * half_to_float(block->scale);
    return segment;
  }
  // Written out in memory, 4 bits a weight.
  using Spelled = SpelledBlock<4, 8>;
  static constexpr std::array<std::int8_t, 16> spelled_values = with_signs(kIq3SValues, 8);
  static constexpr float spelled_unit = 1.0f;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    SpelledCodes<iq3_s>::unpack_rows(words, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
