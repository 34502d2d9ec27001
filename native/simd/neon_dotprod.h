// SPDX-License-Identifier: Apache-2.0
// simd.h for NEON with the dot products of ARMv8.2-A: 4 lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "simd/four_lanes.h"

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kRegisters = 32;

inline float32x4_t raw(Float a) { return (float32x4_t)a; }
inline int32x4_t raw(Int a) { return (int32x4_t)a; }
inline int8x16_t raw_bytes(Int a) { return (int8x16_t)a; }
inline int16x8_t raw_words(Int a) { return (int16x8_t)a; }
inline Float as_float(float32x4_t a) { return (Float)a; }
inline Int as_int(int32x4_t a) { return (Int)a; }

inline Float fma(Float a, Float b, Float c) { return as_float(vfmaq_f32(raw(c), raw(a), raw(b))); }
inline Int round_to_int(Float a) { return as_int(vcvtnq_s32_f32(raw(a))); }
inline float max_lane(Float a) { return vmaxnmvq_f32(raw(a)); }
inline float sum(Float a) {
  return vaddv_f32(vadd_f32(vget_low_f32(raw(a)), vget_high_f32(raw(a))));
}
inline void store_uint8(std::uint8_t* p, Int a) {
  const int16x4_t words = vmovn_s32(raw(a));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
  std::memcpy(p, &four, 4);
}
inline void store_int8(std::int8_t* p, Int a) {
  store_uint8(reinterpret_cast<std::uint8_t*>(p), a);
}
inline void store_uint8_block(std::uint8_t* p, const Int (&a)[16]) {
  for (int i = 0; i < 4; ++i) {
    const int16x8_t words01 = vuzp1q_s16(raw_words(a[4 * i]), raw_words(a[4 * i + 1]));
    const int16x8_t words23 = vuzp1q_s16(raw_words(a[4 * i + 2]), raw_words(a[4 * i + 3]));
    store_int(p + 16 * i, (Int)vuzp1q_s8((int8x16_t)words01, (int8x16_t)words23));
  }
}
inline Float load_half(const std::uint8_t* p) {
  return as_float(vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))));
}
inline Float load_bfloat16(const std::uint8_t* p) {
  return as_float(vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)));
}

inline constexpr bool kDotsAnyByte = false;
// Weights up to 127 are signed bytes, too.
inline Int dot_unsigned(Int accumulator, Int weights, Int inputs) {
  return as_int(vdotq_s32(raw(accumulator), raw_bytes(weights), raw_bytes(inputs)));
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
  return dot_unsigned(accumulator, weights, inputs);
}
// No instruction multiplies unsigned bytes with signed ones: inputs are stored less 128.
inline constexpr int kInputBias = 128;
inline Int dot_bytes(Int accumulator, Int inputs, Int weights) {
  return dot_unsigned(accumulator, weights, inputs);
}

// In place; rows[i] lane j <-> rows[j] lane i.
inline void transpose(Int rows[4]) {
  const int64x2_t a = (int64x2_t)vtrn1q_s32(raw(rows[0]), raw(rows[1]));
  const int64x2_t b = (int64x2_t)vtrn2q_s32(raw(rows[0]), raw(rows[1]));
  const int64x2_t c = (int64x2_t)vtrn1q_s32(raw(rows[2]), raw(rows[3]));
  const int64x2_t d = (int64x2_t)vtrn2q_s32(raw(rows[2]), raw(rows[3]));
  rows[0] = (Int)vtrn1q_s64(a, c);
  rows[1] = (Int)vtrn1q_s64(b, d);
  rows[2] = (Int)vtrn2q_s64(a, c);
  rows[3] = (Int)vtrn2q_s64(b, d);
}
inline void load_lines(const std::uint8_t* first, std::int64_t stride, Int* lines) {
  for (int row = 0; row < 4; ++row) lines[row] = load_int(first + row * stride);
  transpose(lines);
}

inline Int dot_words(Int accumulator, Int a, Int b) {
  const int32x4_t low = vmull_s16(vget_low_s16(raw_words(a)), vget_low_s16(raw_words(b)));
  const int32x4_t high = vmull_high_s16(raw_words(a), raw_words(b));
  return accumulator + as_int(vpaddq_s32(low, high));
}
inline Int interleave_low(Int a, Int b) { return as_int(vzip1q_s32(raw(a), raw(b))); }
inline Int interleave_high(Int a, Int b) { return as_int(vzip2q_s32(raw(a), raw(b))); }
inline Int pack_words(Int a, Int b) { return (Int)vqmovn_high_s32(vqmovn_s32(raw(a)), raw(b)); }
// The fp16 number in the lower half of each lane.
inline Float half_lanes(Int a) {
  return as_float(vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(raw(a)))));
}

// table[code] for codes 0..15
inline Int look_up(const std::int8_t (&table)[16], Int codes) {
  return (Int)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)codes);
}
// Byte i: bit i of `bits` ? value : 0.
inline Codes bit_bytes(std::uint64_t bits, std::uint8_t value) {
  const uint8x16_t single_bit = (uint8x16_t)vdupq_n_u64(0x8040201008040201u);
  const uint8x16_t order = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
  const uint8x16_t bytes = (uint8x16_t)vdupq_n_u64(bits);
  Codes codes;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t eightfold =
        vqtbl1q_u8(bytes, vaddq_u8(order, vdupq_n_u8(static_cast<std::uint8_t>(2 * i))));
    codes.part[i] = (Int)vandq_u8(vtstq_u8(eightfold, single_bit), vdupq_n_u8(value));
  }
  return codes;
}
// Code i: bit i of `bits` ? -code : code, as int8.
inline Codes negate_where(Codes codes, std::uint64_t bits) {
  const Codes mask = bit_bytes(bits, 255);
  for (int i = 0; i < 4; ++i) {
    const int8x16_t m = raw_bytes(mask.part[i]);
    codes.part[i] = (Int)vsubq_s8(veorq_s8(raw_bytes(codes.part[i]), m), m);
  }
  return codes;
}

// 16 bytes as floats.
inline Groups byte_groups(uint8x16_t bytes) {
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
  const uint16x8_t high = vmovl_high_u8(bytes);
  return {{as_float(vcvtq_f32_u32(vmovl_u16(vget_low_u16(low)))),
           as_float(vcvtq_f32_u32(vmovl_high_u16(low))),
           as_float(vcvtq_f32_u32(vmovl_u16(vget_low_u16(high)))),
           as_float(vcvtq_f32_u32(vmovl_high_u16(high)))}};
}
// Lane i: nibble i of the 16 in `nibbles`.
inline Groups nibble_groups(std::uint64_t nibbles) {
  const uint8x8_t bytes = vcreate_u8(nibbles);
  const uint8x8_t even = vand_u8(bytes, vdup_n_u8(15));
  const uint8x8_t odd = vshr_n_u8(bytes, 4);
  return byte_groups(vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd)));
}
inline Groups unsigned_groups(std::uint64_t low, std::uint64_t high) {
  return byte_groups(vcombine_u8(vcreate_u8(low), vcreate_u8(high)));
}
inline Groups unsigned_groups(Words bytes) { return byte_groups((uint8x16_t)bytes); }
inline Groups signed_groups(std::uint64_t low, std::uint64_t high) {
  const int16x8_t first = vmovl_s8(vcreate_s8(low));
  const int16x8_t second = vmovl_s8(vcreate_s8(high));
  return {{as_float(vcvtq_f32_s32(vmovl_s16(vget_low_s16(first)))),
           as_float(vcvtq_f32_s32(vmovl_high_s16(first))),
           as_float(vcvtq_f32_s32(vmovl_s16(vget_low_s16(second)))),
           as_float(vcvtq_f32_s32(vmovl_high_s16(second)))}};
}
// The 8 fp16 numbers at p, p + stride, ... twice; or those at p, then those at q.
template <int stride>
inline Groups half_groups(const std::uint8_t* p, const std::uint8_t* q) {
  std::uint16_t halves[16];
  for (int i = 0; i < 16; ++i) std::memcpy(halves + i, (i < 8 ? p : q) + stride * (i % 8), 2);
  Groups groups;
  for (int i = 0; i < 4; ++i) {
    groups.part[i] = as_float(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + 4 * i))));
  }
  return groups;
}
template <int stride>
inline Groups half_groups(const std::uint8_t* p) {
  const Groups groups = half_groups<stride>(p, p);
  return {{groups.part[0], groups.part[1], groups.part[0], groups.part[1]}};
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
