// SPDX-License-Identifier: Apache-2.0
// simd.h for AVX-512 with VNNI: 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kLanes = 16;
inline constexpr int kRegisters = 32;
using Float = float __attribute__((vector_size(64), may_alias));
using Int = std::int32_t __attribute__((vector_size(64), may_alias));
using Words = std::uint32_t __attribute__((vector_size(16), may_alias));

inline __m512i raw(Int a) { return (__m512i)a; }
inline Int as_int(__m512i a) { return (Int)a; }
inline Float as_float(__m512 a) { return (Float)a; }

inline Float load(const float* p) { return as_float(_mm512_loadu_ps(p)); }
inline void store(float* p, Float a) { _mm512_storeu_ps(p, (__m512)a); }
inline void stream(float* p, Float a) { _mm512_stream_ps(p, (__m512)a); }
inline void end_streams() { _mm_sfence(); }
inline Int load_int(const void* p) { return as_int(_mm512_loadu_si512(p)); }
inline void store_int(void* p, Int a) { _mm512_storeu_si512(p, raw(a)); }
inline Float broadcast(float a) { return as_float(_mm512_set1_ps(a)); }
inline Int broadcast(std::int32_t a) { return as_int(_mm512_set1_epi32(a)); }
inline Float zero() { return as_float(_mm512_setzero_ps()); }
inline Float fma(Float a, Float b, Float c) {
  return as_float(_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c));
}
inline Float to_float(Int a) { return as_float(_mm512_cvtepi32_ps(raw(a))); }
inline Int round_to_int(Float a) { return as_int(_mm512_cvtps_epi32((__m512)a)); }
inline Float absolute(Float a) { return as_float(_mm512_abs_ps((__m512)a)); }
inline Float max(Float a, Float b) { return as_float(_mm512_max_ps((__m512)a, (__m512)b)); }
inline Float min(Float a, Float b) { return as_float(_mm512_min_ps((__m512)a, (__m512)b)); }
inline float max_lane(Float a) { return _mm512_reduce_max_ps((__m512)a); }
inline float sum(Float a) { return _mm512_reduce_add_ps((__m512)a); }
template <int bits>
inline Int shift_right_logical(Int a) {
  return as_int(_mm512_srli_epi32(raw(a), bits));
}
inline void store_int8(std::int8_t* p, Int a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(raw(a)));
}
inline void store_uint8(std::uint8_t* p, Int a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(raw(a)));
}
inline void store_uint8_block(std::uint8_t* p, const Int (&a)[4]) {
  const __m512i words01 = _mm512_packus_epi32(raw(a[0]), raw(a[1]));
  const __m512i words23 = _mm512_packus_epi32(raw(a[2]), raw(a[3]));
  // Dword l of the 128-bit parts 0..3 belongs to vector l.
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words01, words23)));
}
inline Float load_half(const std::uint8_t* p) {
  return as_float(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline Float load_bfloat16(const std::uint8_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)));
}

inline constexpr bool kDotsAnyByte = true;
inline Int dot_unsigned(Int accumulator, Int weights, Int inputs) {
  return as_int(_mm512_dpbusd_epi32(raw(accumulator), raw(weights), raw(inputs)));
}
// vpdpbusd wants unsigned weights: signed codes are stored with 128 added.
inline constexpr int kSignedBias = 128;
inline Int dot_signed(Int accumulator, Int weights, Int inputs) {
  return dot_unsigned(accumulator, weights, inputs);
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
inline constexpr int kInputBias = 0;
inline Int dot_bytes(Int accumulator, Int inputs, Int weights) {
  return as_int(_mm512_dpbusd_epi32(raw(accumulator), raw(inputs), raw(weights)));
}

// In place; rows[i] lane j <-> rows[j] lane i.
inline void transpose(Int rows[16]) {
  __m512i a[16];
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_epi32(raw(rows[2 * i]), raw(rows[2 * i + 1]));
    a[2 * i + 1] = _mm512_unpackhi_epi32(raw(rows[2 * i]), raw(rows[2 * i + 1]));
  }
  __m512i b[16];  // b[4 i + j]: lane group l holds column 4 l + j of rows 4 i..4 i + 3
  for (int i = 0; i < 4; ++i) {
    b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i even01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i odd23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j] = as_int(_mm512_shuffle_i32x4(even01, even23, 0x88));
    rows[8 + j] = as_int(_mm512_shuffle_i32x4(even01, even23, 0xdd));
    rows[4 + j] = as_int(_mm512_shuffle_i32x4(odd01, odd23, 0x88));
    rows[12 + j] = as_int(_mm512_shuffle_i32x4(odd01, odd23, 0xdd));
  }
}

inline Int add_bytes(Int a, Int b) { return as_int(_mm512_add_epi8(raw(a), raw(b))); }
inline Int multiply_words(Int a, Int b) { return as_int(_mm512_mullo_epi16(raw(a), raw(b))); }
inline Int multiply_fractions(Int a, Int b) { return as_int(_mm512_mulhrs_epi16(raw(a), raw(b))); }
inline Int dot_words(Int accumulator, Int a, Int b) {
  return as_int(_mm512_dpwssd_epi32(raw(accumulator), raw(a), raw(b)));
}
inline Int interleave_low(Int a, Int b) { return as_int(_mm512_unpacklo_epi32(raw(a), raw(b))); }
inline Int interleave_high(Int a, Int b) { return as_int(_mm512_unpackhi_epi32(raw(a), raw(b))); }
inline Int pack_words(Int a, Int b) { return as_int(_mm512_packs_epi32(raw(a), raw(b))); }
inline Int broadcast_two(std::int64_t a) { return as_int(_mm512_set1_epi64(a)); }
// The fp16 number in the lower half of each lane.
inline Float half_lanes(Int a) { return as_float(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(raw(a)))); }
inline void load_lines(const std::uint8_t* first, std::int64_t stride, Int* lines) {
  const auto load4 = [=](std::int64_t row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + row * stride));
  };
  __m512i a[4];  // a[k]: rows k, 4 + k, 8 + k, 12 + k
  for (int k = 0; k < 4; ++k) {
    a[k] = _mm512_castsi128_si512(load4(k));
    a[k] = _mm512_inserti32x4(a[k], load4(4 + k), 1);
    a[k] = _mm512_inserti32x4(a[k], load4(8 + k), 2);
    a[k] = _mm512_inserti32x4(a[k], load4(12 + k), 3);
  }
  const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  lines[0] = as_int(_mm512_unpacklo_epi64(low01, low23));
  lines[1] = as_int(_mm512_unpackhi_epi64(low01, low23));
  lines[2] = as_int(_mm512_unpacklo_epi64(high01, high23));
  lines[3] = as_int(_mm512_unpackhi_epi64(high01, high23));
}

struct Codes {
  Int part[1];
};
struct Groups {
  Float part[1];
};

inline Int signed_codes(Int codes) {
  return codes ^ broadcast(static_cast<std::int32_t>(0x80808080u));
}

// [p[0:32], q[0:32]]
inline Codes load_codes(const void* p, const void* q) {
  const __m256i first = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  const __m256i second = _mm256_loadu_si256(static_cast<const __m256i*>(q));
  return {as_int(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1))};
}
// [p[0:32] >> first, p[0:32] >> second], shifted as words: mask afterwards.
template <int first, int second>
inline Codes shifted_twice(const std::uint8_t* p) {
  const __m512i bytes =
      _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  const __m512i counts = _mm512_inserti64x4(_mm512_set1_epi32(first), _mm256_set1_epi32(second), 1);
  return {as_int(_mm512_srlv_epi32(bytes, counts))};
}
// [p[0:16] & 15, p[0:16] >> 4, q[0:16] & 15, q[0:16] >> 4]
inline Codes nibbles(const std::uint8_t* p, const std::uint8_t* q) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  const __m512i pair =
      _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
  const __m512i bytes = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 2, 3, 2, 1, 0, 1, 0), pair);
  const __m512i counts =
      _mm512_set_epi64(0x400000004, 0x400000004, 0, 0, 0x400000004, 0x400000004, 0, 0);
  return {as_int(_mm512_and_si512(_mm512_srlv_epi32(bytes, counts), _mm512_set1_epi8(15)))};
}
// table[code] for codes 0..15
inline Int look_up(const std::int8_t (&table)[16], Int codes) {
  const __m512i values =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return as_int(_mm512_shuffle_epi8(values, raw(codes)));
}
// Byte i: bit i of `bits` ? value : 0.
inline Codes bit_bytes(std::uint64_t bits, std::uint8_t value) {
  return {as_int(_mm512_maskz_set1_epi8(bits, static_cast<char>(value)))};
}

// Eight bytes from each word.
inline Codes word_codes(const std::uint64_t (&w)[8]) {
  return {as_int(_mm512_set_epi64(static_cast<long long>(w[7]), static_cast<long long>(w[6]),
                                  static_cast<long long>(w[5]), static_cast<long long>(w[4]),
                                  static_cast<long long>(w[3]), static_cast<long long>(w[2]),
                                  static_cast<long long>(w[1]), static_cast<long long>(w[0])))};
}
// Code i: bit i of `bits` ? -code : code, as int8.
inline Codes negate_where(Codes codes, std::uint64_t bits) {
  const __m512i c = raw(codes.part[0]);
  return {as_int(_mm512_mask_sub_epi8(c, bits, _mm512_setzero_si512(), c))};
}
// Lane i: nibble i of the 16 in `nibbles`.
inline Groups nibble_groups(std::uint64_t nibbles) {
  const __m128i bytes = _mm_cvtsi64_si128(static_cast<long long>(nibbles));
  const __m128i pairs = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));
  return {
      as_float(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(pairs, _mm_set1_epi8(15)))))};
}
inline Groups unsigned_groups(std::uint64_t low, std::uint64_t high) {
  const __m128i bytes = _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
  return {as_float(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))};
}
inline Groups signed_groups(std::uint64_t low, std::uint64_t high) {
  const __m128i bytes = _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
  return {as_float(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))};
}
inline Groups unsigned_groups(Words bytes) {
  return {as_float(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes)))};
}
// Lanes 0..7: the fp16 number at p; lanes 8..15: the next one.
inline Groups half_pair_groups(const std::uint8_t* p) {
  const __m128 pair = _mm_cvtph_ps(_mm_loadu_si32(p));
  const __m512i lanes = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  return {as_float(_mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(pair)))};
}
// The lower lanes of a, the upper lanes of b.
inline Float join(Float a, Float b) {
  return as_float(_mm512_mask_mov_ps((__m512)a, 0xff00, (__m512)b));
}
// Of a sum over the second halves of Groups: the lanes that hold them.
inline Float upper_lanes(Float a) { return as_float(_mm512_maskz_mov_ps(0xff00, (__m512)a)); }
inline __m128i strided_halves(const std::uint8_t* p, int stride) {
  std::uint16_t h[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&h[i], p + stride * i, 2);
  return _mm_set_epi16(static_cast<short>(h[7]), static_cast<short>(h[6]), static_cast<short>(h[5]),
                       static_cast<short>(h[4]), static_cast<short>(h[3]), static_cast<short>(h[2]),
                       static_cast<short>(h[1]), static_cast<short>(h[0]));
}
// The 8 fp16 numbers at p, p + stride, ... twice; or those at p, then those at q.
template <int stride>
inline Groups half_groups(const std::uint8_t* p) {
  static_assert(stride % 2 == 0);
  constexpr int kWords = stride / 2;
  // Word i of the result is half i % 8. The first four are picked from the bytes at p, the others
  // from those four blocks on, with word offsets 0, kWords, 2 kWords, 3 kWords in both; no load
  // leaves the 8 blocks.
  constexpr int kLast = 3 * kWords;
  const __m512i offsets = _mm512_broadcastq_epi64(
      _mm_cvtsi64_si128((static_cast<long long>(kLast) << 48) | (2ll * kWords << 32) |
                        (static_cast<long long>(kWords) << 16)));
  constexpr __mmask32 kSecondFour = 0xf0f0f0f0;
  __m512i halves;
  if constexpr (kLast < 32 && 4 * stride + 64 <= 8 * stride) {
    halves = _mm512_permutexvar_epi16(offsets, _mm512_loadu_si512(p));
    halves = _mm512_mask_permutexvar_epi16(halves, kSecondFour, offsets,
                                           _mm512_loadu_si512(p + 4 * stride));
  } else {
    return {as_float(_mm512_cvtph_ps(_mm256_broadcastsi128_si256(strided_halves(p, stride))))};
  }
  return {as_float(_mm512_cvtph_ps(_mm512_castsi512_si256(halves)))};
}
template <int stride>
inline Groups half_groups(const std::uint8_t* p, const std::uint8_t* q) {
  return {as_float(
      _mm512_cvtph_ps(_mm256_set_m128i(strided_halves(q, stride), strided_halves(p, stride))))};
}

// Factors for the lanes of code vector `index` (64 columns) of a segment.
template <int group_size>
inline Float spread(const Groups& groups, int index) {
  const Int lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Int group = (lane >> (group_size == 32 ? 3 : 2)) + broadcast(index * (64 / group_size));
  return as_float(_mm512_permutexvar_ps(raw(group), (__m512)groups.part[0]));
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
