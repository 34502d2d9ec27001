// SPDX-License-Identifier: Apache-2.0
// IQ1_M: the codebook of IQ1_S, a shift per 8 weights, scales of 3 bits per 16.
//
// layout   56 bytes: [0:32] low 8 bits of the indices, [32:48] a nibble per index: 3 high bits and
//          the sign of the shift, [48:56] four words: bits 3 k..3 k + 2 the scale codes, and in the
//          top 4 bits the quarters of the fp16 scale, least significant first
// value    scale * (2 * scale_code + 1) * (grid + shift), shift = +-0.125
// bits     1.75 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"
#include "formats/spelled_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq1_m {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t indices_low[32];
    std::uint8_t indices_high[16];
    std::uint16_t scales[4];
  };
  static_assert(sizeof(Block) == 56);

  static std::uint16_t block_scale(const Block& block) {
    return static_cast<std::uint16_t>(block.scales[0] >> 12 | (block.scales[1] >> 12) << 4 |
                                      (block.scales[2] >> 12) << 8 | (block.scales[3] >> 12) << 12);
  }

  static int scale_code(const Block& block, int group) {
    return block.scales[group / 4] >> (3 * (group % 4)) & 7;
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block_scale(block));
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * static_cast<float>(2 * scale_code(block, group) + 1);
      for (int j = 2 * group; j < 2 * group + 2; ++j) {
        const int high = block.indices_high[group] >> (4 * (j % 2));
        const float shift = high & 8 ? -0.125f : 0.125f;
        shifted_grid_values(kIq1Grid[block.indices_low[j] | (high & 7) << 8], shift, group_scale,
                            values + 8 * j);
      }
    }
  }

  static constexpr bool uses_codebook = true;
  static constexpr int group_size = 16;
  static constexpr int zero_point = 9;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    // Codes are 8 * level + 9 + 8 * shift, so that weight = scale / 8 * (code - 9).
    simd::Segment segment;
    float scales[16];
    const float scale = half_to_float(block_scale(*block));
    for (int part = 0; part < 4; ++part) {
      std::uint64_t codes[8];
      for (int j = 0; j < 8; ++j) {
        const int high = block->indices_high[4 * part + j / 2] >> (4 * (j % 2));
        codes[j] = shifted_grid(kIq1Grid[block->indices_low[8 * part + j] | (high & 7) << 8],
                                (high & 8) != 0);
      }
      segment.codes[part] = simd::word_codes(codes);
      for (int group = 0; group < 4; ++group) {
        scales[4 * part + group] =
            scale * static_cast<float>(2 * (block->scales[part] >> (3 * group) & 7) + 1) * 0.125f;
      }
    }
    segment.scale = simd::load_groups(scales);
    return segment;
  }
  // Written out in memory, 3 bits a weight.
  using Spelled = SpelledBlock<3, 16>;
  static constexpr std::array<std::int8_t, 16> spelled_values = {-7, 1, 9, 0, -9, -1, 7};
  static constexpr float spelled_unit = 0.125f;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    SpelledCodes<iq1_m>::unpack_rows(words, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
