// SPDX-License-Identifier: Apache-2.0
// Q8_0: 8-bit symmetric integers in groups of 32.
//
// layout   34 bytes: [0:2] scale fp16, [2:34] int8
// value    scale * int8
// bits     8.5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q8_0 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::int8_t codes[32];
  };
  static_assert(sizeof(Block) == 34);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 32; ++i) values[i] = scale * static_cast<float>(block.codes[i]);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
