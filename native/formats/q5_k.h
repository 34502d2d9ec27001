// SPDX-License-Identifier: Apache-2.0
// Q5_K: 5-bit integers with minimums, 8 groups of 32 in a block of 256, scales and minimums of 6
// bits.
//
// layout   176 bytes: [0:2] scale fp16, [2:4] minimum fp16, [4:16] codes of the groups
//          (group_codes.h), [16:48] fifth bits, bit j of byte i for weight 32 j + i, [48:176]
//          nibbles as in Q4_K
// value    (scale * scale_code) * code - (minimum * minimum_code)
// bits     5.5 per weight
#pragma once

#include <algorithm>
#include <cstdint>

#include "formats/float_bits.h"
#include "formats/group_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q5_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t group_codes[12];
    std::uint8_t high_bits[32];
    std::uint8_t codes[128];
  };
  static_assert(sizeof(Block) == 176);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    const float minimum = half_to_float(block.minimum);
    const GroupCodes groups = unpack_group_codes(block.group_codes);
    for (int group = 0; group < 8; ++group) {
      const float group_scale = scale * static_cast<float>(groups.scale[group]);
      const float group_minimum = minimum * static_cast<float>(groups.minimum[group]);
      const std::uint8_t* codes = block.codes + 32 * (group / 2);
      const int shift = 4 * (group % 2);
      for (int i = 0; i < 32; ++i) {
        const int code = (codes[i] >> shift & 15) | (block.high_bits[i] >> group & 1) << 4;
        values[32 * group + i] = group_scale * static_cast<float>(code) - group_minimum;
      }
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = false;
  static constexpr int largest_code = 31;
  static constexpr bool has_minimum = true;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    const simd::Codes high[4] = {
        simd::shifted_twice<0, 1>(block->high_bits), simd::shifted_twice<2, 3>(block->high_bits),
        simd::shifted_twice<4, 5>(block->high_bits), simd::shifted_twice<6, 7>(block->high_bits)};
    for (int part = 0; part < 4; ++part) {
      const simd::Codes low = simd::shifted_twice<0, 4>(block->codes + 32 * part) & 15;
      segment.codes[part] = low | simd::shift_left<4>(high[part] & 1);
    }
    segment.scale = simd::unsigned_groups(group_code_words(block->group_codes)) *
                    simd::half_pair_groups(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    unpack_group_words(words, lanes);
    simd::Int high[8];
    std::copy_n(words + 4, 8, high);
    const simd::Int nibble = simd::broadcast(0x0f0f0f0f);
    const simd::Int fifth_bit = simd::broadcast(0x10101010);
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += 4) {
      const simd::Int* lines = words + 12 + i;
      simd::Int codes[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        simd::Int& bits = high[i % 8 + j];
        codes[0][j] = (lines[j] & nibble) | ((bits << 4) & fifth_bit);
        codes[1][j] = (simd::shift_right_logical<4>(lines[j]) & nibble) | ((bits << 3) & fifth_bit);
        bits = simd::shift_right_logical<2>(bits);
      }
      const int quad = i / 8 * 16 + i % 8;
      lanes.put(quad, codes[0]);
      lanes.put(quad + 8, codes[1]);
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
