// SPDX-License-Identifier: Apache-2.0
// Eight weights from one codebook entry: the shared last step of the IQ1, IQ2 and IQ3 formats.
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

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

// The 64 codes of 8 codebook entries, byte 8 j + i negated where bit i of byte j of signs is set.
inline simd::Codes signed_grid_codes(const std::uint64_t (&grid)[8], std::uint64_t signs) {
  return simd::signed_codes(simd::negate_where(simd::word_codes(grid), signs));
}

// Byte i: 8 * (level + 1) + (is_negative ? 0 : 2) for the signed levels -1, 0, 1 in grid.
inline std::uint64_t shifted_grid(std::uint64_t grid, bool is_negative) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  const std::uint64_t levels = ((grid & 0x7f * kOnes) + kOnes) & 3 * kOnes;
  return (levels << 3) + (is_negative ? 0 : 2 * kOnes);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
