// SPDX-License-Identifier: Apache-2.0
// Q2_K: 2-bit integers, 16 groups of 16 in a block of 256, scales and minimums of 4 bits.
//
// layout   84 bytes: [0:16] scale code (low nibble) and minimum code (high nibble) of each group,
//          [16:80] codes, [80:82] scale fp16, [82:84] minimum fp16. Byte 32 h + i of the codes
//          holds the weights 128 h + 32 s + i, s = 0..3, in its bits 2 s and 2 s + 1
// value    (scale * scale_code) * code - (minimum * minimum_code)
// bits     2.625 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q2_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t scale_codes[16];
    std::uint8_t codes[64];
    std::uint16_t scale;
    std::uint16_t minimum;
  };
  static_assert(sizeof(Block) == 84);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    const float minimum = half_to_float(block.minimum);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * static_cast<float>(block.scale_codes[group] & 15);
      const float group_minimum = minimum * static_cast<float>(block.scale_codes[group] >> 4);
      const std::uint8_t* codes = block.codes + 32 * (group / 8) + 16 * (group % 2);
      const int shift = 2 * (group / 2 % 4);
      for (int i = 0; i < 16; ++i) {
        const auto code = static_cast<float>(codes[i] >> shift & 3);
        values[16 * group + i] = group_scale * code - group_minimum;
      }
    }
  }

  static constexpr int group_size = 16;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = false;
  static constexpr int largest_code = 3;
  // Scales (0..15) times codes fit a byte, so that they can be multiplied beforehand.
  static constexpr int least_product = 0;
  static constexpr bool has_minimum = true;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int half = 0; half < 2; ++half) {
      segment.codes[2 * half] = simd::shifted_twice<0, 2>(block->codes + 32 * half) & 3;
      segment.codes[2 * half + 1] = simd::shifted_twice<4, 6>(block->codes + 32 * half) & 3;
    }
    constexpr std::uint64_t kLowNibbles = 0x0f0f0f0f0f0f0f0f;
    const auto first = load<std::uint64_t>(block->scale_codes);
    const auto second = load<std::uint64_t>(block->scale_codes + 8);
    segment.scale = simd::unsigned_groups(first & kLowNibbles, second & kLowNibbles) *
                    half_to_float(block->scale);
    segment.minimum = simd::unsigned_groups(first >> 4 & kLowNibbles, second >> 4 & kLowNibbles) *
                      half_to_float(block->minimum);
    return segment;
  }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const simd::Int both = simd::byte_lanes(words[i / 4], i % 4);
      lanes.scale[i] = both & simd::broadcast(15);
      lanes.minimum[i] = simd::shift_right_logical<4>(both);
    }
    lanes.factor = simd::half_lanes(words[20]);
    lanes.minimum_factor = simd::half_lanes(simd::shift_right_logical<16>(words[20]));
    simd::put_two_bits(words + 4, lanes);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
