// SPDX-License-Identifier: Apache-2.0
// Q4_1: 4-bit integers with a minimum in groups of 32.
//
// layout   20 bytes: [0:2] scale fp16, [2:4] minimum fp16, [4:20] codes, nibbles as in Q4_0
// value    scale * code + minimum
// bits     5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q4_1 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t codes[16];
  };
  static_assert(sizeof(Block) == 20);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    const float minimum = half_to_float(block.minimum);
    for (int i = 0; i < 16; ++i) {
      values[i] = scale * static_cast<float>(block.codes[i] & 15) + minimum;
      values[i + 16] = scale * static_cast<float>(block.codes[i] >> 4) + minimum;
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
      segment.codes[part] = simd::nibbles(block[2 * part].codes, block[2 * part + 1].codes);
    }
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(block);
    segment.scale =
        simd::half_groups<sizeof(Block)>(bytes, bytes + 2) * simd::split_groups(1.0f, -1.0f);
    return segment;
  }
  // A row in each lane, given word by word: scale and minimum of 8 blocks, then their codes.
  static constexpr int header_bytes = 4;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      lanes.scale[i] = simd::half_lanes(words[i]);
      lanes.minus_minimum[i] = simd::half_lanes(simd::shift_right_logical<16>(words[i]));
    }
    simd::put_nibbles(words + 8, lanes, [](simd::Int codes) { return codes; });
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
