// SPDX-License-Identifier: Apache-2.0
// F16: IEEE half precision.
//
// layout   2 bytes, little endian
// value    as stored
// bits     16 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct f16 {
  static constexpr std::int64_t block_size = 1;
  struct [[gnu::packed]] Block {
    std::uint16_t value;
  };
  static_assert(sizeof(Block) == 2);

  static void decode(const Block& block, float* values) { *values = half_to_float(block.value); }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
