// SPDX-License-Identifier: Apache-2.0
// Q5_1: 5-bit integers with a minimum in groups of 32.
//
// layout   24 bytes: [0:2] scale fp16, [2:4] minimum fp16, [4:8] fifth bits, [8:24] nibbles as in
//          Q4_0 value    scale * code + minimum bits     6 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q5_1 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint32_t high_bits;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 24);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    const float minimum = half_to_float(block.minimum);
    const std::uint32_t high = block.high_bits;
    for (int i = 0; i < 16; ++i) {
      const int low_code = (block.codes[i] & 15) | ((high >> i) & 1) << 4;
      const int high_code = (block.codes[i] >> 4) | ((high >> (i + 16)) & 1) << 4;
      values[i] = scale * static_cast<float>(low_code) + minimum;
      values[i + 16] = scale * static_cast<float>(high_code) + minimum;
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = true;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const std::uint64_t high =
          block[2 * part].high_bits | std::uint64_t{block[2 * part + 1].high_bits} << 32;
      segment.codes[part] = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes) |
                            simd::bit_bytes(high, 16);
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(block);
    segment.scale =
        simd::half_groups<sizeof(Block)>(bytes, bytes + 2) * simd::split_groups(1.0f, -1.0f);
    return segment;
  }
  // A row in each lane, given word by word: scale, minimum and high bits of 8 blocks, then their codes.
  static constexpr int header_bytes = 8;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    simd::Int high_bits[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      lanes.scale[i] = simd::half_lanes(words[2 * i]);
      lanes.minus_minimum[i] = simd::half_lanes(simd::shift_right_logical<16>(words[2 * i]));
      high_bits[i] = words[2 * i + 1];
    }
    simd::put_five_bits(words + 16, high_bits, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
