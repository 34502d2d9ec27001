// SPDX-License-Identifier: Apache-2.0
// Q3_K: 3-bit symmetric integers, 16 groups of 16 in a block of 256, scales of 6 bits.
//
// layout   110 bytes: [0:32] third bits, bit j of byte i for weight 32 j + i, [32:96] low two bits
// as in Q2_K,
//          [96:108] scale codes, [108:110] scale fp16. Group g < 8 has its low 4 bits in the low
//          nibble of byte g, group g >= 8 in the high nibble of byte g - 8; the high 2 bits are
//          bits 2 (g / 4) of byte 8 + g % 4
// value    (scale * (scale_code - 32)) * (code - 4)
// bits     3.4375 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q3_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t high_bits[32];
    std::uint8_t codes[64];
    std::uint8_t scale_codes[12];
    std::uint16_t scale;
  };
  static_assert(sizeof(Block) == 110);

  // Signed scale code of a group, -32..31.
  static int scale_code(const Block& block, int group) {
    const int low = block.scale_codes[group % 8] >> (4 * (group / 8)) & 15;
    const int high = block.scale_codes[8 + group % 4] >> (2 * (group / 4)) & 3;
    return (low | high << 4) - 32;
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * static_cast<float>(scale_code(block, group));
      const int offset = 16 * (group % 2);
      const std::uint8_t* codes = block.codes + 32 * (group / 8) + offset;
      const int shift = 2 * (group / 2 % 4);
      for (int i = 0; i < 16; ++i) {
        const int high = block.high_bits[offset + i] >> (group / 2) & 1;
        const int code = (codes[i] >> shift & 3) | high << 2;
        values[16 * group + i] = group_scale * static_cast<float>(code - 4);
      }
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
