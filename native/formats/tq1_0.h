// SPDX-License-Identifier: Apache-2.0
// TQ1_0: ternary weights, five to a byte, one scale per 256.
//
// layout   54 bytes: [0:48] five base-3 digits a byte, [48:52] four digits a byte, [52:54] scale
//          fp16. A byte b holds ceil(256 * n / 243) for the five-digit number n, so that digit k,
//          most significant first, is the integer part of 3 * (b * 3^k mod 256) / 256. Byte i < 32
//          has the weights 32 k + i, byte 32 + i the weights 160 + 16 k + i (i < 16), byte 48 + i
//          the weights 240 + 4 k + i (i, k < 4)
// value    scale * (digit - 1)
// bits     1.6875 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "formats/tq2_0.h"
#include "simd/simd.h"

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

  // codes[n_bytes k + i] = digit k of byte i, 0..2
  static void unpack_digits(const std::uint8_t* bytes, int n_bytes, int n_digits,
                            std::uint8_t* codes) {
    constexpr std::uint8_t kPower[5] = {1, 3, 9, 27, 81};
    for (int k = 0; k < n_digits; ++k) {
      for (int i = 0; i < n_bytes; ++i) {
        const auto rest = static_cast<std::uint8_t>(bytes[i] * kPower[k]);
        codes[n_bytes * k + i] = static_cast<std::uint8_t>(rest * 3 >> 8);
      }
    }
  }

  static void unpack_all(const Block& block, std::uint8_t (&codes)[256]) {
    unpack_digits(block.digits, 32, 5, codes);
    unpack_digits(block.digits + 32, 16, 5, codes + 160);
    unpack_digits(block.last_digits, 4, 4, codes + 240);
  }

  static void decode(const Block& block, float* values) {
    std::uint8_t codes[256];
    unpack_all(block, codes);
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 256; ++i) values[i] = scale * static_cast<float>(codes[i] - 1);
  }

  static constexpr bool uses_codebook = true;  // not one, but as slow
  static constexpr int group_size = 32;
  static constexpr int zero_point = 1;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    std::uint8_t codes[256];
    unpack_all(*block, codes);
    for (int part = 0; part < 4; ++part) segment.codes[part] = simd::load_codes(codes + 64 * part);
    segment.scale = simd::equal_groups(half_to_float(block->scale));
    return segment;
  }
  // In memory two bits a weight: a digit takes a multiplication, two bits a shift.
  using SpelledAs = tq2_0;
  using Spelled = tq2_0::Block;
  static constexpr int place_of(int word) { return tq2_0::place_of(word); }
  static Spelled spell(const Block& block) {
    std::uint8_t codes[256];
    unpack_all(block, codes);
    Spelled spelled{};
    for (int part = 0; part < 8; ++part) {
      for (int i = 0; i < 32; ++i) {
        spelled.codes[32 * (part / 4) + i] |=
            static_cast<std::uint8_t>(codes[32 * part + i] << (2 * (part % 4)));
      }
    }
    spelled.scale = block.scale;
    return spelled;
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
