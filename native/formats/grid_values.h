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

// The same as bytes: byte i of the result is the int8 (bit i of signs ? -1 : 1) * byte i of grid,
// which is 1..127.
inline std::uint64_t signed_grid(std::uint64_t grid, std::uint8_t signs) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  const std::uint64_t bit = signs * kOnes & 0x8040201008040201;
  const std::uint64_t is_negative = ((bit + 0x7f * kOnes) | bit) >> 7 & kOnes;
  return (grid ^ is_negative * 255) + is_negative;
}

// Byte i: 8 * (level + 1) + (is_negative ? 0 : 2) for the signed levels -1, 0, 1 in grid.
inline std::uint64_t shifted_grid(std::uint64_t grid, bool is_negative) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  const std::uint64_t levels = ((grid & 0x7f * kOnes) + kOnes) & 3 * kOnes;
  return (levels << 3) + (is_negative ? 0 : 2 * kOnes);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
