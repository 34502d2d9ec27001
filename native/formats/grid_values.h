// SPDX-License-Identifier: Apache-2.0
// Eight weights from one codebook entry: the shared last step of the IQ1, IQ2 and IQ3 formats.
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// values[i] = (scale * byte i of grid) * (bit i of signs ? -1 : 1)
inline void grid_values(std::uint64_t grid, std::uint8_t signs, float scale, float* values) {
  for (int i = 0; i < 8; ++i) {
    const auto magnitude = static_cast<float>(grid >> (8 * i) & 255);
    values[i] = scale * magnitude * (signs >> i & 1 ? -1.0f : 1.0f);
  }
}

// values[i] = scale * (signed byte i of grid + shift)
inline void shifted_grid_values(std::uint64_t grid, float shift, float scale, float* values) {
  for (int i = 0; i < 8; ++i) {
    const auto level = static_cast<float>(static_cast<std::int8_t>(grid >> (8 * i) & 255));
    values[i] = scale * (level + shift);
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
