// SPDX-License-Identifier: Apache-2.0
// IQ2_XS: 8 weights from a codebook of 512, signs with even parity, scales of 4 bits per 16.
//
// layout   74 bytes: [0:2] scale fp16, [2:66] 32 words of 9 bits codebook index and 7 bits sign
// index, [66:74] scale
//          codes, nibble g for group g
// value    scale * (0.5 + scale_code) * 0.25 * grid * sign
// bits     2.3125 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "formats/grid_values.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq2_xs {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t codes[32];
    std::uint8_t scale_codes[8];
  };
  static_assert(sizeof(Block) == 74);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 16; ++group) {
      const int code = block.scale_codes[group / 2] >> (4 * (group % 2)) & 15;
      const float group_scale = scale * (0.5f + static_cast<float>(code)) * 0.25f;
      for (int j = 2 * group; j < 2 * group + 2; ++j) {
        grid_values(kIq2XsGrid[block.codes[j] & 511], kSignParity[block.codes[j] >> 9], group_scale,
                    values + 8 * j);
      }
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
