// SPDX-License-Identifier: Apache-2.0
// Q5_0: 5-bit symmetric integers in groups of 32.
//
// layout   22 bytes: [0:2] scale fp16, [2:6] fifth bits, bit i of the word for weight i, [6:22]
//          nibbles as in Q4_0 value    scale * (code - 16) bits     5.5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q5_0 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint32_t high_bits;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 22);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    const std::uint32_t high = block.high_bits;
    for (int i = 0; i < 16; ++i) {
      const int low_code = (block.codes[i] & 15) | ((high >> i) & 1) << 4;
      const int high_code = (block.codes[i] >> 4) | ((high >> (i + 16)) & 1) << 4;
      values[i] = scale * static_cast<float>(low_code - 16);
      values[i + 16] = scale * static_cast<float>(high_code - 16);
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 16;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const std::uint64_t high =
          block[2 * part].high_bits | std::uint64_t{block[2 * part + 1].high_bits} << 32;
      segment.codes[part] = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes) |
                            simd::bit_bytes(high, 16);
    }
    segment.scale = simd::half_groups<sizeof(Block)>(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A row in each lane, given word by word: scale and high bits of 8 blocks, 6 bytes each, then their
  // codes.
  static constexpr int header_bytes = 6;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    simd::Int high_bits[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const simd::Int* two = words + 3 * i;
      lanes.scale[2 * i] = simd::half_lanes(two[0]);
      high_bits[2 * i] = simd::shift_right_logical<16>(two[0]) | (two[1] << 16);
      lanes.scale[2 * i + 1] = simd::half_lanes(simd::shift_right_logical<16>(two[1]));
      high_bits[2 * i + 1] = two[2];
    }
    simd::put_five_bits(words + 12, high_bits, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
