// SPDX-License-Identifier: Apache-2.0
// IQ4_NL: 4-bit indices into a fixed non-linear table of 16 signed values, groups of 32.
//
// layout   18 bytes: [0:2] scale fp16, [2:18] indices, nibbles as in Q4_0
// value    scale * kIq4NlValues[index]
// bits     4.5 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq4_nl {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 18);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 16; ++i) {
      values[i] = scale * static_cast<float>(kIq4NlValues[block.codes[i] & 15]);
      values[i + 16] = scale * static_cast<float>(kIq4NlValues[block.codes[i] >> 4]);
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const simd::Codes codes = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes);
      segment.codes[part] = simd::look_up_signed(kIq4NlValues, codes);
    }
    segment.scale = simd::half_groups<sizeof(Block)>(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A row in each lane, given word by word: the scales of 8 blocks, then their codes.
  static constexpr int header_bytes = 2;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    simd::half_pairs(words, lanes.scale);
    simd::put_nibbles(words + 4, lanes,
                      [](simd::Int codes) { return simd::look_up_signed(kIq4NlValues, codes); });
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
