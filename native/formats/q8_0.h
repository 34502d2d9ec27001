// SPDX-License-Identifier: Apache-2.0
// Q8_0: 8-bit symmetric integers in groups of 32.
//
// layout   34 bytes: [0:2] scale fp16, [2:34] int8
// value    scale * int8
// bits     8.5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q8_0 {
  static constexpr std::int64_t block_size = 32;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::int8_t codes[32];
  };
  static_assert(sizeof(Block) == 34);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int i = 0; i < 32; ++i) values[i] = scale * static_cast<float>(block.codes[i]);
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      segment.codes[part] =
          simd::signed_codes(simd::load_codes(block[2 * part].codes, block[2 * part + 1].codes));
    }
    segment.scale = simd::half_groups<sizeof(Block)>(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A row in each lane, given word by word: the scales of 8 blocks, then their codes.
  static constexpr int header_bytes = 2;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    simd::half_pairs(words, lanes.scale);
#pragma GCC unroll 16
    for (int quad = 0; quad < 64; quad += 4) {
      simd::Int codes[4];
      for (int i = 0; i < 4; ++i) codes[i] = simd::signed_codes(words[4 + quad + i]);
      lanes.put(quad, codes);
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
