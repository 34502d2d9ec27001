// SPDX-License-Identifier: Apache-2.0
// Q6_K: 6-bit symmetric integers, 16 groups of 16 in a block of 256, scales of 8 bits.
//
// layout   210 bytes: [0:128] low nibbles, [128:192] high 2 bits, [192:208] int8 scale codes,
//          [208:210] scale fp16. In half h: byte 64 h + i (i < 64) of the nibbles holds weight 128
//          h + i low and 128 h + 64 + i high; byte 32 h + i of the high bits holds the weights 128
//          h + 32 s + i in its bits 2 s and 2 s + 1
// value    (scale * scale_code) * (code - 32)
// bits     6.5625 per weight
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q6_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t low_bits[128];
    std::uint8_t high_bits[64];
    std::int8_t scale_codes[16];
    std::uint16_t scale;
  };
  static_assert(sizeof(Block) == 210);

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * static_cast<float>(block.scale_codes[group]);
      const int half = group / 8;
      const int quarter = group / 2 % 4;
      const std::uint8_t* low = block.low_bits + 64 * half + 32 * (quarter % 2) + 16 * (group % 2);
      const std::uint8_t* high = block.high_bits + 32 * half + 16 * (group % 2);
      for (int i = 0; i < 16; ++i) {
        const int code = (low[i] >> (4 * (quarter / 2)) & 15) | (high[i] >> (2 * quarter) & 3) << 4;
        values[16 * group + i] = group_scale * static_cast<float>(code - 32);
      }
    }
  }

  static constexpr int group_size = 16;
  static constexpr int zero_point = 32;
  static constexpr bool is_signed = false;
  static constexpr int largest_code = 63;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int half = 0; half < 2; ++half) {
      const simd::Codes low = simd::load_codes(block->low_bits + 64 * half);
      const std::uint8_t* high = block->high_bits + 32 * half;
      segment.codes[2 * half] =
          (low & 15) | simd::shift_left<4>(simd::shifted_twice<0, 2>(high) & 3);
      segment.codes[2 * half + 1] = (simd::shift_right<4>(low) & 15) |
                                    simd::shift_left<4>(simd::shifted_twice<4, 6>(high) & 3);
    }
    const auto first = load<std::uint64_t>(block->scale_codes);
    const auto second = load<std::uint64_t>(block->scale_codes + 8);
    segment.scale = simd::signed_groups(first, second) * half_to_float(block->scale);
    return segment;
  }
  // Scales first; then of each half the high bits and the first half of the nibbles by turns, and the
  // second half.
  static constexpr int place_of(int word) {
    if (word >= 48) return word - 48;
    if (word >= 32) return 5 + (word - 32) / 8 * 24 + word % 8 * 2;
    const int start = 5 + word / 16 * 24;
    return word % 16 < 8 ? start + word % 8 * 2 + 1 : start + 16 + word % 8;
  }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) lanes.scale[i] = (words[i / 4] << (24 - i % 4 * 8)) >> 24;
    lanes.factor = simd::half_lanes(words[4]);
    const simd::Int nibble = simd::broadcast(0x0f0f0f0f);
    const simd::Int top_bits = simd::broadcast(0x30303030);
#pragma GCC unroll 8
    for (int part = 0; part < 8; ++part) {
      const int quarter = part % 4;
      const simd::Int* half = words + 5 + part / 4 * 24;
#pragma GCC unroll 2
      for (int i = 0; i < 8; i += 4) {
        simd::Int codes[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const simd::Int high = half[2 * (i + j)];
          const simd::Int low = quarter % 2 == 0 ? half[2 * (i + j) + 1] : half[16 + i + j];
          const simd::Int bits =
              quarter < 2 ? high << (4 - 2 * quarter) : high >> (2 * quarter - 4);
          codes[j] = ((low >> (quarter / 2 * 4)) & nibble) | (bits & top_bits);
        }
        lanes.put(8 * part + i, codes);
      }
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
