// SPDX-License-Identifier: Apache-2.0
// Q3_K: 3-bit symmetric integers, 16 groups of 16 in a block of 256, scales of 6 bits.
//
// layout   110 bytes: [0:32] third bits, bit j of byte i for weight 32 j + i, [32:96] low two bits
//          as in Q2_K, [96:108] scale codes, [108:110] scale fp16. Group g < 8 has its low 4 bits
//          in the low nibble of byte g, group g >= 8 in the high nibble of byte g - 8; the high 2
//          bits are bits 2 (g / 4) of byte 8 + g % 4
// value    (scale * (scale_code - 32)) * (code - 4)
// bits     3.4375 per weight
#pragma once

#include <algorithm>
#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct q3_k {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint8_t high_bits[32];
    std::uint8_t codes[64];
    std::uint8_t scale_codes[12];
    std::uint16_t scale;
  };
  static_assert(sizeof(Block) == 110);

  // Signed scale code of a group, -32..31.
  static int scale_code(const Block& block, int group) {
    const int low = block.scale_codes[group % 8] >> (4 * (group / 8)) & 15;
    const int high = block.scale_codes[8 + group % 4] >> (2 * (group / 4)) & 3;
    return (low | high << 4) - 32;
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 16; ++group) {
      const float group_scale = scale * static_cast<float>(scale_code(block, group));
      const int offset = 16 * (group % 2);
      const std::uint8_t* codes = block.codes + 32 * (group / 8) + offset;
      const int shift = 2 * (group / 2 % 4);
      for (int i = 0; i < 16; ++i) {
        const int high = block.high_bits[offset + i] >> (group / 2) & 1;
        const int code = (codes[i] >> shift & 3) | high << 2;
        values[16 * group + i] = group_scale * static_cast<float>(code - 4);
      }
    }
  }

  static constexpr int group_size = 16;
  static constexpr int zero_point = 4;
  static constexpr bool is_signed = false;
  static constexpr int largest_code = 7;
  // Scales (-32..31) times codes (-4..3) lie in -124..128, so that they can be multiplied beforehand.
  static constexpr int least_product = -124;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    const simd::Codes high[4] = {
        simd::shifted_twice<0, 1>(block->high_bits), simd::shifted_twice<2, 3>(block->high_bits),
        simd::shifted_twice<4, 5>(block->high_bits), simd::shifted_twice<6, 7>(block->high_bits)};
    for (int half = 0; half < 2; ++half) {
      segment.codes[2 * half] = simd::shifted_twice<0, 2>(block->codes + 32 * half) & 3;
      segment.codes[2 * half + 1] = simd::shifted_twice<4, 6>(block->codes + 32 * half) & 3;
    }
    for (int part = 0; part < 4; ++part) {
      segment.codes[part] = segment.codes[part] | simd::shift_left<2>(high[part] & 1);
    }
    constexpr std::uint64_t kLowNibbles = 0x0f0f0f0f0f0f0f0f;
    constexpr std::uint32_t kPairs = 0x03030303;
    const auto low = load<std::uint64_t>(block->scale_codes);
    const auto top = load<std::uint32_t>(block->scale_codes + 8);
    const std::uint64_t top_first = (top & kPairs) | std::uint64_t{top >> 2 & kPairs} << 32;
    const std::uint64_t top_second = (top >> 4 & kPairs) | std::uint64_t{top >> 6 & kPairs} << 32;
    const simd::Groups codes = simd::unsigned_groups((low & kLowNibbles) | top_first << 4,
                                                     (low >> 4 & kLowNibbles) | top_second << 4);
    segment.scale = (codes - 32.0f) * half_to_float(block->scale);
    return segment;
  }
  // Scales first.
  static constexpr int place_of(int word) { return (word + 4) % 28; }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    unpack_scales(words, lanes);
    simd::Int high_bits[8];
    std::copy_n(words + 4, 8, high_bits);
    const simd::Int two_bits = simd::broadcast(0x03030303);
    const simd::Int third_bit = simd::broadcast(0x04040404);
#pragma GCC unroll 8
    for (int part = 0; part < 8; ++part) {
      const simd::Int* low = words + 12 + part / 4 * 8;
#pragma GCC unroll 2
      for (int i = 0; i < 8; i += 4) {
        simd::Int codes[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const simd::Int high =
              part < 2 ? high_bits[i + j] << (2 - part) : high_bits[i + j] >> (part - 2);
          codes[j] = ((low[i + j] >> (part % 4 * 2)) & two_bits) | (high & third_bit);
        }
        lanes.put(8 * part + i, codes);
      }
    }
  }

  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_scales(const simd::Int* words, Lanes& lanes) {
    lanes.factor = simd::half_lanes(words[3]);
    const simd::Int nibble = simd::broadcast(0x0f0f0f0f);
    const simd::Int top_bits = simd::broadcast(0x30303030);
    const simd::Int codes[4] = {
        (words[0] & nibble) | ((words[2] << 4) & top_bits),
        (words[1] & nibble) | ((words[2] << 2) & top_bits),
        (simd::shift_right_logical<4>(words[0]) & nibble) | (words[2] & top_bits),
        (simd::shift_right_logical<4>(words[1]) & nibble) |
            (simd::shift_right_logical<2>(words[2]) & top_bits)};
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      lanes.scale[i] = simd::byte_lanes(codes[i / 4], i % 4) - simd::broadcast(32);
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
