// SPDX-License-Identifier: Apache-2.0
// TQ1_0: ternary weights, five to a byte, one scale per 256.
//
// layout   54 bytes: [0:48] five base-3 digits a byte, [48:52] four digits a byte, [52:54] scale
// fp16.
//          A byte b holds ceil(256 * n / 243) for the five-digit number n, so that digit k, most
//          significant first, is the integer part of 3 * (b * 3^k mod 256) / 256. Byte i < 32 has
//          the weights 32 k + i, byte 32 + i the weights 160 + 16 k + i (i < 16), byte 48 + i the
//          weights 240 + 4 k + i (i, k < 4)
// value    scale * (digit - 1)
// bits     1.6875 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct tq1_0 {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t digits[48];
    std::uint8_t last_digits[4];
    std::uint16_t scale;
  };
  static_assert(sizeof(Block) == 54);

  static void decode_digits(const std::uint8_t* bytes, int n_bytes, int n_digits, float scale,
                            float* values) {
    constexpr std::uint8_t kPower[5] = {1, 3, 9, 27, 81};
    for (int k = 0; k < n_digits; ++k) {
      for (int i = 0; i < n_bytes; ++i) {
        const auto rest = static_cast<std::uint8_t>(bytes[i] * kPower[k]);
        values[n_bytes * k + i] = scale * static_cast<float>((rest * 3 >> 8) - 1);
      }
    }
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    decode_digits(block.digits, 32, 5, scale, values);
    decode_digits(block.digits + 32, 16, 5, scale, values + 160);
    decode_digits(block.last_digits, 4, 4, scale, values + 240);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
