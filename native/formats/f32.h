// SPDX-License-Identifier: Apache-2.0
// F32: IEEE single precision.
//
// layout   4 bytes, little endian
// value    as stored
// bits     32 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct f32 {
  static constexpr std::int64_t block_size = 1;
  struct [[gnu::packed]] Block {
    float value;
  };
  static_assert(sizeof(Block) == 4);

  static void decode(const Block& block, float* values) { *values = block.value; }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
