// SPDX-License-Identifier: Apache-2.0
// IQ4_XS: the table of IQ4_NL, 8 groups of 32 in a block of 256, scales of 6 bits.
//
// layout   136 bytes: [0:2] scale fp16, [2:4] high 2 bits of the scale codes, bits 2 g for group g,
//          [4:8] low 4 bits, nibble g, [8:136] indices; byte 16 g + i holds weight 32 g + i low and
//          32 g + 16 + i high
// value    (scale * (scale_code - 32)) * kIq4NlValues[index]
// bits     4.25 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct iq4_xs {
  static constexpr std::int64_t block_size = 256;
  struct [[gnu::packed]] Block {
    std::uint16_t scale;
    std::uint16_t scales_high;
    std::uint8_t scales_low[4];
    std::uint8_t codes[128];
  };
  static_assert(sizeof(Block) == 136);

  // Signed scale code of a group, -32..31.
  static int scale_code(const Block& block, int group) {
    const int low = block.scales_low[group / 2] >> (4 * (group % 2)) & 15;
    return (low | (block.scales_high >> (2 * group) & 3) << 4) - 32;
  }

  // 16 times the two high bits of each group's code, for both halves of Groups.
  static simd::Groups high_codes(std::uint16_t bits) {
    std::uint64_t pairs = bits;  // spread to the low bits of 8 bytes
    pairs = (pairs | pairs << 24) & 0x000000ff000000ff;
    pairs = (pairs | pairs << 12) & 0x000f000f000f000f;
    pairs = (pairs | pairs << 6) & 0x0303030303030303;
    return simd::unsigned_groups(pairs << 4, pairs << 4);
  }

  static void decode(const Block& block, float* values) {
    const float scale = half_to_float(block.scale);
    for (int group = 0; group < 8; ++group) {
      const float group_scale = scale * static_cast<float>(scale_code(block, group));
      const std::uint8_t* codes = block.codes + 16 * group;
      for (int i = 0; i < 16; ++i) {
        values[32 * group + i] = group_scale * static_cast<float>(kIq4NlValues[codes[i] & 15]);
        values[32 * group + i + 16] = group_scale * static_cast<float>(kIq4NlValues[codes[i] >> 4]);
      }
    }
  }

  static constexpr int group_size = 32;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  static constexpr bool has_scale_codes = true;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    for (int part = 0; part < 4; ++part) {
      const simd::Codes codes =
          simd::nibbles(block->codes + 32 * part, block->codes + 32 * part + 16);
      segment.codes[part] = simd::look_up_signed(kIq4NlValues, codes);
    }
    const auto low = std::uint64_t{load<std::uint32_t>(block->scales_low)};
    const simd::Groups codes =
        simd::nibble_groups(low | low << 32) + high_codes(block->scales_high);
    segment.scale = (codes - 32.0f) * half_to_float(block->scale);
    return segment;
  }
  // A block in each lane, given word by word; the decode above, all of them at once.
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    const simd::Float scale = simd::half_lanes(words[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const simd::Int low = (words[1] >> (4 * i)) & simd::broadcast(15);
      const simd::Int high = (words[0] >> (16 + 2 * i)) & simd::broadcast(3);
      simd::put_scale(lanes, i, scale, (low | (high << 4)) - simd::broadcast(32));
    }
    simd::put_nibbles(words + 2, lanes,
                      [](simd::Int codes) { return simd::look_up_signed(kIq4NlValues, codes); });
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
