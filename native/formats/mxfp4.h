// SPDX-License-Identifier: Apache-2.0
// MXFP4: 4-bit floats (E2M1) in groups of 32 with a power of two as scale (OCP Microscaling 1.0).
//
// layout   17 bytes: [0] exponent E8M0, [1:17] codes, nibbles as in Q4_0
// value    2^(exponent - 128) * kE2m1DoubledValues[code]: the table holds doubled values, the scale
//          is halved bits     4.25 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct mxfp4 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint8_t exponent;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 17);

  // 2^(exponent - 128); the two smallest are subnormal floats.
  static float half_scale(std::uint8_t exponent) {
    const std::uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23;
    return std::bit_cast<float>(bits);
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_scale(block.exponent);
    for (int i = 0; i < 16; ++i) {
      values[i] = scale * static_cast<float>(kE2m1DoubledValues[block.codes[i] & 15]);
      values[i + 16] = scale * static_cast<float>(kE2m1DoubledValues[block.codes[i] >> 4]);
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  static constexpr int largest_magnitude = 12;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const simd::Codes codes = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes);
      segment.codes[part] = simd::look_up_signed(kE2m1DoubledValues, codes);
    }
    float scales[8];
    for (int group = 0; group < 8; ++group) scales[group] = half_scale(block[group].exponent);
    segment.scale = simd::load_groups_twice(scales);
    return segment;
  }
  // A row in each lane, given word by word: the exponents of 8 blocks, then their codes.
  static constexpr int header_bytes = 1;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const simd::Int exponent = simd::byte_lanes(words[i / 4], i % 4);
      const simd::Int normal = (exponent - simd::broadcast(1)) << 23;
      const simd::Int subnormal = simd::broadcast(0x00200000) << exponent;
      lanes.scale[i] = (simd::Float)(exponent < simd::broadcast(2) ? subnormal : normal);
    }
    simd::put_nibbles(words + 2, lanes, [](simd::Int codes) {
      return simd::look_up_signed(kE2m1DoubledValues, codes);
    });
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
