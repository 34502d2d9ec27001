// SPDX-License-Identifier: Apache-2.0
// TQ2_0: ternary weights, four to a byte, one scale per 256.
//
// layout   66 bytes: [0:64] codes, [64:66] scale fp16. Byte 32 h + i holds the weights 128 h + 32 s
//          + i, s = 0..3, in its bits 2 s and 2 s + 1
// value    scale * (code - 1)
// bits     2.0625 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct tq2_0 {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t codes[64];
    std::uint16_t scale;
  };
  static_assert(sizeof(Block) == 66);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int part = 0; part < 8; ++part) {
      const std::uint8_t* codes = block.codes + 32 * (part / 4);
      for (int i = 0; i < 32; ++i) {
        values[32 * part + i] = scale * static_cast<float>((codes[i] >> (2 * (part % 4)) & 3) - 1);
      }
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 1;
  static constexpr bool is_signed = false;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int half = 0; half < 2; ++half) {
      segment.codes[2 * half] = simd::shifted_twice<0, 2>(block->codes + 32 * half) & 3;
      segment.codes[2 * half + 1] = simd::shifted_twice<4, 6>(block->codes + 32 * half) & 3;
    }
    segment.scale = simd::equal_groups(half_to_float(block->scale));
    return segment;
  }
  // The scale first.
  static constexpr int place_of(int word) { return (word + 1) % 17; }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    const simd::Float scale = simd::half_lanes(words[0]);
#pragma GCC unroll 8
    for (int group = 0; group < 8; ++group) lanes.scale[group] = scale;
    simd::put_two_bits(words + 1, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
