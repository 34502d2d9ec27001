// SPDX-License-Identifier: Apache-2.0
// NVFP4: 4-bit floats (E2M1), 4 groups of 16 in a block of 64, scales in unsigned E4M3.
//
// layout   36 bytes: [0:4] scales, [4:36] codes; byte 8 g + i holds weight 16 g + i low and 16 g +
//          8 + i high value    scale / 2 * kE2m1DoubledValues[code] bits     4.5 per weight
#pragma once

#include <cstdint>

#include "formats/codebooks.h"
#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct nvfp4 {
  static constexpr std::int64_t block_size = 64;
  struct [[gnu::packed]] Block {
    std::uint8_t scales[4];
    std::uint8_t codes[32];
  };
  static_assert(sizeof(Block) == 36);

  // Half of an unsigned E4M3 value with bias 7; 0x7f is read as 0, bit 7 is ignored.
  static float half_scale(std::uint8_t bits) {
    if (bits == 0x7f) return 0.0f;
    const std::uint32_t exponent = bits >> 3 & 15;
    const auto mantissa = static_cast<float>(bits & 7);
    if (exponent == 0) return mantissa * 0x1p-10f;
    return (1.0f + mantissa / 8.0f) * std::bit_cast<float>((exponent + 127 - 7 - 1) << 23);
  }

  static void decode(const Block& block, float* values) {
    for (int group = 0; group < 4; ++group) {
      const float scale = half_scale(block.scales[group]);
      const std::uint8_t* codes = block.codes + 8 * group;
      for (int i = 0; i < 8; ++i) {
        values[16 * group + i] = scale * static_cast<float>(kE2m1DoubledValues[codes[i] & 15]);
        values[16 * group + i + 8] = scale * static_cast<float>(kE2m1DoubledValues[codes[i] >> 4]);
      }
    }
  }

  static constexpr bool uses_codebook = true;  // not one, but as slow
  static constexpr int group_size = 16;
  static constexpr int zero_point = 0;
  static constexpr bool is_signed = true;
  static constexpr bool has_minimum = false;
  // The 256 weights from `block` on; the decode above, in pieces.
  static simd::Segment unpack(const Block* block) {
    simd::Segment segment;
    constexpr std::uint64_t kLowNibbles = 0x0f0f0f0f0f0f0f0f;
    float scales[16];
    for (int part = 0; part < 4; ++part) {
      std::uint64_t words[8];
      for (int group = 0; group < 4; ++group) {
        const auto pairs = load<std::uint64_t>(block[part].codes + 8 * group);
        words[2 * group] = pairs & kLowNibbles;
        words[2 * group + 1] = pairs >> 4 & kLowNibbles;
        scales[4 * part + group] = half_scale(block[part].scales[group]);
      }
      segment.codes[part] = simd::look_up_signed(kE2m1DoubledValues, simd::word_codes(words));
    }
    segment.scale = simd::load_groups(scales);
    return segment;
  }
  // A row in each lane, given word by word: the scales of 4 blocks, then their codes.
  static constexpr int header_bytes = 4;
  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    const simd::Int nibble = simd::broadcast(0x0f0f0f0f);
#pragma GCC unroll 16
    for (int group = 0; group < 16; ++group) {
      lanes.scale[group] = half_scales(simd::byte_lanes(words[group / 4], group % 4));
      simd::Int codes[4];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const simd::Int both = words[4 + 2 * group + i];
        codes[i] = value_codes(both & nibble);
        codes[2 + i] = value_codes(simd::shift_right_logical<4>(both) & nibble);
      }
      lanes.put(4 * group, codes);
    }
  }

 private:
  static simd::Int value_codes(simd::Int codes) {
    return simd::look_up_signed(kE2m1DoubledValues, codes);
  }
  // half_scale in each lane: as the exponent and mantissa of a float, whose bias is 119 larger.
  static simd::Float half_scales(simd::Int bits) {
    bits = bits & simd::broadcast(0x7f);
    bits = bits & ~(bits == simd::broadcast(0x7f));
    return (simd::Float)(bits << 20) * simd::broadcast(0x1p119f);
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
