// SPDX-License-Identifier: Apache-2.0
// simd.h without intrinsics: 4 lanes of compiler vectors, which any machine lowers as well as it
// can.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/four_lanes.h"

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kRegisters = 16;

// Rounds twice: this set has no fused multiply-add.
inline Float fma(Float a, Float b, Float c) { return a * b + c; }
inline Int round_to_int(Float a) {
  Int result;
  for (int i = 0; i < 4; ++i) result[i] = static_cast<std::int32_t>(std::nearbyint(a[i]));
  return result;
}
inline float max_lane(Float a) {
  const float low = a[0] > a[1] ? a[0] : a[1];
  const float high = a[2] > a[3] ? a[2] : a[3];
  return low > high ? low : high;
}
inline float sum(Float a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline void store_int8(std::int8_t* p, Int a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::int8_t>(a[i]);
}
inline void store_uint8(std::uint8_t* p, Int a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::uint8_t>(a[i]);
}
inline void store_uint8_block(std::uint8_t* p, const Int (&a)[16]) {
  for (int i = 0; i < 16; ++i) store_uint8(p + 4 * i, a[i]);
}
inline Float load_half(const std::uint8_t* p) {
  Float a;
  for (int i = 0; i < 4; ++i)
    a[i] = formats::half_to_float(formats::load<std::uint16_t>(p + 2 * i));
  return a;
}
inline Float load_bfloat16(const std::uint8_t* p) {
  Float a;
  for (int i = 0; i < 4; ++i)
    a[i] = formats::bfloat16_to_float(formats::load<std::uint16_t>(p + 2 * i));
  return a;
}

// Sum of the two int16 halves of each lane.
inline Int pair_sums(Shorts a) { return (((Int)a << 16) >> 16) + ((Int)a >> 16); }
inline constexpr bool kDotsAnyByte = false;
// Products of even and odd bytes fit int16: at most 128 * 127.
inline Int dot_unsigned(Int accumulator, Int weights, Int inputs) {
  const Shorts even = (Shorts)((UnsignedShorts)weights & 255) * (((Shorts)inputs << 8) >> 8);
  const Shorts odd = (Shorts)((UnsignedShorts)weights >> 8) * ((Shorts)inputs >> 8);
  return accumulator + pair_sums(even) + pair_sums(odd);
}
inline Int dot_unsigned(Int accumulator, Int weights0, Int inputs0, Int weights1, Int inputs1) {
  return dot_unsigned(dot_unsigned(accumulator, weights0, inputs0), weights1, inputs1);
}
// One part: the dot itself.
inline constexpr int kPartsOfDots = 1;
inline Int dot_parts(Int parts, Int weights0, Int inputs0, Int weights1, Int inputs1) {
  return dot_unsigned(parts, weights0, inputs0, weights1, inputs1);
}
inline Int part_factor(Int factor) { return factor & broadcast(0xffff); }
inline constexpr int kSignedBias = 0;
inline Int dot_signed(Int accumulator, Int weights, Int inputs) {
  const Shorts even = (((Shorts)weights << 8) >> 8) * (((Shorts)inputs << 8) >> 8);
  const Shorts odd = ((Shorts)weights >> 8) * ((Shorts)inputs >> 8);
  return accumulator + pair_sums(even) + pair_sums(odd);
}
// Products fit int16: at most 255 * 128.
inline constexpr int kInputBias = 0;
inline Int dot_bytes(Int accumulator, Int inputs, Int weights) {
  const Shorts even = (Shorts)((UnsignedShorts)inputs & 255) * (((Shorts)weights << 8) >> 8);
  const Shorts odd = (Shorts)((UnsignedShorts)inputs >> 8) * ((Shorts)weights >> 8);
  return accumulator + pair_sums(even) + pair_sums(odd);
}

// In place; rows[i] lane j <-> rows[j] lane i.
inline void transpose(Int rows[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const std::int32_t swapped = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = swapped;
    }
  }
}

inline Int dot_words(Int accumulator, Int a, Int b) {
  return accumulator + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
inline Int interleave_low(Int a, Int b) { return Int{a[0], b[0], a[1], b[1]}; }
inline Int interleave_high(Int a, Int b) { return Int{a[2], b[2], a[3], b[3]}; }
inline Int pack_words(Int a, Int b) {
  const auto word = [](std::int32_t x) {
    return static_cast<std::int16_t>(x > 32767 ? 32767 : (x < -32768 ? -32768 : x));
  };
  return (Int)Shorts{word(a[0]), word(a[1]), word(a[2]), word(a[3]),
                     word(b[0]), word(b[1]), word(b[2]), word(b[3])};
}
// The fp16 number in the lower half of each lane.
inline Float half_lanes(Int a) {
  Float result;
  for (int i = 0; i < 4; ++i) {
    result[i] = formats::half_to_float(static_cast<std::uint16_t>(a[i] & 0xffff));
  }
  return result;
}
inline void load_lines(const std::uint8_t* first, std::int64_t stride, Int* lines) {
  for (int row = 0; row < 4; ++row) lines[row] = load_int(first + row * stride);
  transpose(lines);
}

// table[code] for codes 0..15
inline Int look_up(const std::int8_t (&table)[16], Int codes) {
  std::uint8_t bytes[16];
  std::memcpy(bytes, &codes, 16);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(table[byte]);
  std::memcpy(&codes, bytes, 16);
  return codes;
}
// Byte i: bit i of `bits` ? value : 0.
inline Codes bit_bytes(std::uint64_t bits, std::uint8_t value) {
  std::uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = bits >> i & 1 ? value : 0;
  Codes codes;
  std::memcpy(&codes, bytes, 64);
  return codes;
}

// Code i: bit i of `bits` ? -code : code, as int8.
inline Codes negate_where(Codes codes, std::uint64_t bits) {
  std::int8_t bytes[64];
  std::memcpy(bytes, &codes, 64);
  for (int i = 0; i < 64; ++i)
    bytes[i] = static_cast<std::int8_t>(bits >> i & 1 ? -bytes[i] : bytes[i]);
  std::memcpy(&codes, bytes, 64);
  return codes;
}
// Lane i: nibble i of the 16 in `nibbles`.
inline Groups nibble_groups(std::uint64_t nibbles) {
  Groups groups;
  for (int i = 0; i < 16; ++i)
    groups.part[i / 4][i % 4] = static_cast<float>(nibbles >> (4 * i) & 15);
  return groups;
}
inline Groups unsigned_groups(std::uint64_t low, std::uint64_t high) {
  Groups groups;
  for (int i = 0; i < 16; ++i) {
    groups.part[i / 4][i % 4] = static_cast<float>((i < 8 ? low : high) >> (8 * (i % 8)) & 255);
  }
  return groups;
}
inline Groups signed_groups(std::uint64_t low, std::uint64_t high) {
  Groups groups;
  for (int i = 0; i < 16; ++i) {
    const auto byte = static_cast<std::int8_t>((i < 8 ? low : high) >> (8 * (i % 8)) & 255);
    groups.part[i / 4][i % 4] = static_cast<float>(byte);
  }
  return groups;
}
inline Groups unsigned_groups(Words bytes) {
  Groups groups;
  for (int i = 0; i < 16; ++i)
    groups.part[i / 4][i % 4] = static_cast<float>(bytes[i / 4] >> (8 * (i % 4)) & 255);
  return groups;
}
// The 8 fp16 numbers at p, p + stride, ... twice; or those at p, then those at q.
template <int stride>
inline Groups half_groups(const std::uint8_t* p, const std::uint8_t* q) {
  Groups groups;
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t* source = (i < 8 ? p : q) + stride * (i % 8);
    groups.part[i / 4][i % 4] = formats::half_to_float(formats::load<std::uint16_t>(source));
  }
  return groups;
}
template <int stride>
inline Groups half_groups(const std::uint8_t* p) {
  return half_groups<stride>(p, p);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
