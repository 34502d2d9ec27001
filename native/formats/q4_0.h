// SPDX-License-Identifier: Apache-2.0
// Q4_0: 4-bit symmetric integers in groups of 32.
//
// layout   18 bytes: [0:2] scale fp16, [2:18] codes, weight i in the low and i + 16 in the high
//          nibble of byte i value    scale * (code - 8) bits     4.5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q4_0 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 18);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 16; ++i) {
      values[i] = scale * static_cast<float>((block.codes[i] & 15) - 8);
      values[i + 16] = scale * static_cast<float>((block.codes[i] >> 4) - 8);
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 8;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      segment.codes[part] = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes);
    }
    segment.scale = simd::half_groups<sizeof(Block)>(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A row in each lane, given word by word: the scales of 8 blocks, then their codes.
  static constexpr int header_bytes = 2;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    simd::half_pairs(words, lanes.scale);
    simd::put_nibbles(words + 4, lanes, [](simd::Int codes) { return codes; });
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
