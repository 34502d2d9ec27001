// SPDX-License-Identifier: Apache-2.0
// Q4_K: 4-bit integers with minimums, 8 groups of 32 in a block of 256, scales and minimums of 6
// bits.
//
// layout   144 bytes: [0:2] scale fp16, [2:4] minimum fp16, [4:16] codes of the groups
//          (group_codes.h), [16:144] codes. Byte 32 p + i holds weight 64 p + i in its low and 64 p
//          + 32 + i in its high nibble
// value    (scale * scale_code) * code - (minimum * minimum_code)
// bits     4.5 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "formats/group_codes.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q4_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t group_codes[12];
    std::uint8_t codes[128];
  };
  static_assert(sizeof(Block) == 144);

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
        values[32 * group + i] =
            group_scale * static_cast<float>(codes[i] >> shift & 15) - group_minimum;
      }
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = false;
  static constexpr int largest_code = 15;
  static constexpr bool has_minimum = true;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      segment.codes[part] = simd::shifted_twice<0, 4>(block->codes + 32 * part) & 15;
    }
    segment.scale = simd::unsigned_groups(group_code_words(block->group_codes)) *
                    simd::half_pair_groups(reinterpret_cast<const std::uint8_t*>(block));
    return segment;
  }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    unpack_group_words(words, lanes);
#pragma GCC unroll 8
    for (int i = 0; i < 32; i += 4) {
      const simd::Int* lines = words + 4 + i;
      const int quad = i / 8 * 16 + i % 8;
      simd::Int codes[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        codes[0][j] = lines[j] & simd::broadcast(0x0f0f0f0f);
        codes[1][j] = simd::shift_right_logical<4>(lines[j]) & simd::broadcast(0x0f0f0f0f);
      }
      lanes.put(quad, codes[0]);
      lanes.put(quad + 8, codes[1]);
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
