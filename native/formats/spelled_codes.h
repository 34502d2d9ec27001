// SPDX-License-Identifier: Apache-2.0
// Codebook weights written out, for memory only: the index of each weight among at most 16 values, in
// 3 or 4 bits, where the file has the index of 4 or 8 of them and their signs. That takes 1.2 to 2
// times the bytes of the file and a tenth of its time: the codebooks need a look-up for every 4 or 8
// weights of a row, this a byte shuffle for 64.
//
// layout   [0:2] scale of the block fp16, [2:4] nothing, then the codes of the groups' scales, 4 bits
//          each, and of the weights. 4 bits: byte 16 g + i holds weight 32 g + i in its low and 32 g +
//          16 + i in its high nibble. 3 bits, of each 128 weights: 16 bytes of high bits, bit k of byte
//          i that of weight 16 k + i; then twice 16 bytes of low bits, the weights 16 k + i of 64 in
//          bits 2 k
// value    scale * unit * (2 * scale_code + 1) * values[code]
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// Magnitudes with both signs, the negative ones in the upper half.
template <std::size_t n>
constexpr std::array<std::int8_t, 16> with_signs(const int (&magnitudes)[n], std::size_t upper) {
  std::array<std::int8_t, 16> values{};
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = static_cast<std::int8_t>(magnitudes[i]);
    values[upper + i] = static_cast<std::int8_t>(-magnitudes[i]);
  }
  return values;
}

template <int bits, int n_groups>
struct SpelledBlock {
  static_assert(bits == 3 || bits == 4);
  std::uint16_t scale;
  std::uint16_t nothing;
  std::uint8_t scale_codes[n_groups / 2];
  std::uint8_t codes[32 * bits];
};

// Of a format with `Spelled`, `block_scale`, `scale_code`, `spelled_values` and `spelled_unit`.
template <typename Format>
struct SpelledCodes {
  static constexpr int kGroups = 256 / Format::group_size;
  static constexpr int kBits = sizeof(Format::Spelled::codes) / 32;
  static constexpr int kFirst = 1 + kGroups / 8;  // word of the codes

  static typename Format::Spelled spell(const typename Format::Block& block) {
    typename Format::Spelled spelled{};
    spelled.scale = Format::block_scale(block);
    for (int group = 0; group < kGroups; ++group) {
      spelled.scale_codes[group / 2] |=
          static_cast<std::uint8_t>(Format::scale_code(block, group) << (4 * (group % 2)));
    }
    const simd::Segment segment = Format::unpack(&block);
    std::uint8_t stored[256];
    static_assert(sizeof(segment.codes) == sizeof(stored));
    std::memcpy(stored, &segment.codes, sizeof(stored));
    for (int i = 0; i < 256; ++i) put(kIndices[stored[i]], i, spelled.codes);
    return spelled;
  }

  template <typename Lanes>
  [[gnu::always_inline]] static void unpack_rows(const simd::Int* words, Lanes& lanes) {
    const simd::Float scale = simd::half_lanes(words[0]) * simd::broadcast(Format::spelled_unit);
#pragma GCC unroll 16
    for (int i = 0; i < kGroups; ++i) {
      const simd::Int code = (words[1 + i / 8] >> (4 * (i % 8))) & simd::broadcast(15);
      simd::put_scale(lanes, i, scale, code + code + simd::broadcast(1));
    }
    if constexpr (kBits == 4) {
      simd::put_nibbles(words + kFirst, lanes, value_codes);
    } else {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) put_half(words + kFirst + 12 * half, half, lanes);
    }
  }

 private:
  // Which value a code of `unpack` is.
  static constexpr std::array<std::uint8_t, 256> indices() {
    std::array<std::uint8_t, 256> found{};
    for (std::size_t i = Format::spelled_values.size(); i-- > 0;) {
      const int start = Format::is_signed ? simd::kSignedBias : Format::zero_point;
      found[static_cast<std::uint8_t>(Format::spelled_values[i] + start)] =
          static_cast<std::uint8_t>(i);
    }
    return found;
  }
  static constexpr std::array<std::uint8_t, 256> kIndices = indices();

  static void put(std::uint8_t index, int i, std::uint8_t* codes) {
    if constexpr (kBits == 4) {
      codes[i / 32 * 16 + i % 16] |= static_cast<std::uint8_t>(index << (i % 32 / 16 * 4));
    } else {
      std::uint8_t* half = codes + i / 128 * 48;
      const int sixteen = i % 128 / 16;
      half[i % 16] |= static_cast<std::uint8_t>(index >> 2 << sixteen);
      half[16 + sixteen / 4 * 16 + i % 16] |=
          static_cast<std::uint8_t>((index & 3) << (sixteen % 4 * 2));
    }
  }

  static simd::Int value_codes(simd::Int codes) {
    return simd::look_up_signed(kValues.values, codes);
  }
  struct Values {
    std::int8_t values[16];
  };
  static constexpr Values kValues = [] {
    Values table{};
    for (std::size_t i = 0; i < 16; ++i) table.values[i] = Format::spelled_values[i];
    return table;
  }();

  template <typename Lanes>
  [[gnu::always_inline]] static void put_half(const simd::Int* words, int half, Lanes& lanes) {
    const simd::Int third_bit = simd::broadcast(0x04040404);
    const simd::Int two_bits = simd::broadcast(0x03030303);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      simd::Int codes[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const simd::Int high = k < 2 ? words[j] << (2 - k) : words[j] >> (k - 2);
        const simd::Int low = words[4 + k / 4 * 4 + j] >> (k % 4 * 2);
        codes[j] = value_codes((low & two_bits) | (high & third_bit));
      }
      lanes.put(32 * half + 4 * k, codes);
    }
  }
};

// A block as it lies in memory, of any format with `Spelled`.
template <typename Format>
typename Format::Spelled spell(const typename Format::Block& block) {
  if constexpr (requires { Format::spell(block); }) {
    return Format::spell(block);
  } else {
    return SpelledCodes<Format>::spell(block);
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
