// SPDX-License-Identifier: Apache-2.0
// IQ4_NL: 4-bit indices into a fixed non-linear table of 16 signed values, groups of 32.
//
// layout   18 bytes: [0:2] scale fp16, [2:18] indices, nibbles as in Q4_0
// value    scale * kIq4NlValues[index]
// bits     4.5 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq4_nl {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 18);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 16; ++i) {
      values[i] = scale * static_cast<float>(kIq4NlValues[block.codes[i] & 15]);
      values[i + 16] = scale * static_cast<float>(kIq4NlValues[block.codes[i] >> 4]);
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
