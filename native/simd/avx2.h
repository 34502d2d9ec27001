// SPDX-License-Identifier: Apache-2.0
// simd.h for AVX2 with FMA and F16C: 8 lanes. Dot products: avx2_dots.h, avx_vnni_dots.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kLanes = 8;
inline constexpr int kRegisters = 16;
using Float = float __attribute__((vector_size(32), may_alias));
using Int = std::int32_t __attribute__((vector_size(32), may_alias));
using Words = std::uint32_t __attribute__((vector_size(16), may_alias));

inline __m256i raw(Int a) { return (__m256i)a; }
inline Int as_int(__m256i a) { return (Int)a; }
inline Float as_float(__m256 a) { return (Float)a; }

inline Float load(const float* p) { return as_float(_mm256_loadu_ps(p)); }
inline void store(float* p, Float a) { _mm256_storeu_ps(p, (__m256)a); }
inline void stream(float* p, Float a) { _mm256_stream_ps(p, (__m256)a); }
inline void end_streams() { _mm_sfence(); }
inline Int load_int(const void* p) {
  return as_int(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline void store_int(void* p, Int a) { _mm256_storeu_si256(static_cast<__m256i*>(p), raw(a)); }
inline Float broadcast(float a) { return as_float(_mm256_set1_ps(a)); }
inline Int broadcast(std::int32_t a) { return as_int(_mm256_set1_epi32(a)); }
inline Float zero() { return as_float(_mm256_setzero_ps()); }
inline Float fma(Float a, Float b, Float c) {
  return as_float(_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c));
}
inline Float to_float(Int a) { return as_float(_mm256_cvtepi32_ps(raw(a))); }
inline Int round_to_int(Float a) { return as_int(_mm256_cvtps_epi32((__m256)a)); }
inline Float absolute(Float a) {
  return as_float(_mm256_and_ps((__m256)a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))));
}
inline Float max(Float a, Float b) { return as_float(_mm256_max_ps((__m256)a, (__m256)b)); }
inline Float min(Float a, Float b) { return as_float(_mm256_min_ps((__m256)a, (__m256)b)); }
inline float max_lane(Float a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline float sum(Float a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
template <int bits>
inline Int shift_right_logical(Int a) {
  return as_int(_mm256_srli_epi32(raw(a), bits));
}
inline void store_int8(std::int8_t* p, Int a) {
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(raw(a)), _mm256_extracti128_si256(raw(a), 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline void store_uint8(std::uint8_t* p, Int a) {
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(raw(a)), _mm256_extracti128_si256(raw(a), 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
inline void store_uint8_block(std::uint8_t* p, const Int (&a)[8]) {
  const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
  for (int i = 0; i < 2; ++i) {
    const __m256i words01 = _mm256_packus_epi32(raw(a[4 * i]), raw(a[4 * i + 1]));
    const __m256i words23 = _mm256_packus_epi32(raw(a[4 * i + 2]), raw(a[4 * i + 3]));
    const __m256i bytes = _mm256_packus_epi16(words01, words23);
    store_int(p + 32 * i, as_int(_mm256_permutevar8x32_epi32(bytes, order)));
  }
}
inline Float load_half(const std::uint8_t* p) {
  return as_float(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Float load_bfloat16(const std::uint8_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return as_float(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
}

// In place; rows[i] lane j <-> rows[j] lane i.
inline void transpose(Int rows[8]) {
  __m256i a[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(raw(rows[2 * i]), raw(rows[2 * i + 1]));
    a[2 * i + 1] = _mm256_unpackhi_epi32(raw(rows[2 * i]), raw(rows[2 * i + 1]));
  }
  __m256i b[8];
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = as_int(_mm256_permute2x128_si256(b[j], b[4 + j], 0x20));
    rows[4 + j] = as_int(_mm256_permute2x128_si256(b[j], b[4 + j], 0x31));
  }
}

inline Int add_bytes(Int a, Int b) { return as_int(_mm256_add_epi8(raw(a), raw(b))); }
inline Int multiply_words(Int a, Int b) { return as_int(_mm256_mullo_epi16(raw(a), raw(b))); }
inline Int multiply_fractions(Int a, Int b) { return as_int(_mm256_mulhrs_epi16(raw(a), raw(b))); }
inline Int interleave_low(Int a, Int b) { return as_int(_mm256_unpacklo_epi32(raw(a), raw(b))); }
inline Int interleave_high(Int a, Int b) { return as_int(_mm256_unpackhi_epi32(raw(a), raw(b))); }
inline Int pack_words(Int a, Int b) { return as_int(_mm256_packs_epi32(raw(a), raw(b))); }
inline Int broadcast_two(std::int64_t a) { return as_int(_mm256_set1_epi64x(a)); }
// The fp16 number in the lower half of each lane.
inline Float half_lanes(Int a) {
  const __m256i low = _mm256_and_si256(raw(a), _mm256_set1_epi32(0xffff));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return as_float(_mm256_cvtph_ps(_mm256_castsi256_si128(words)));
}
inline void load_lines(const std::uint8_t* first, std::int64_t stride, Int* lines) {
  const auto load4 = [=](std::int64_t row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + row * stride));
  };
  __m256i a[4];  // a[k]: rows k, 4 + k
  for (int k = 0; k < 4; ++k) {
    a[k] = _mm256_inserti128_si256(_mm256_castsi128_si256(load4(k)), load4(4 + k), 1);
  }
  const __m256i low01 = _mm256_unpacklo_epi32(a[0], a[1]);
  const __m256i high01 = _mm256_unpackhi_epi32(a[0], a[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(a[2], a[3]);
  const __m256i high23 = _mm256_unpackhi_epi32(a[2], a[3]);
  lines[0] = as_int(_mm256_unpacklo_epi64(low01, low23));
  lines[1] = as_int(_mm256_unpackhi_epi64(low01, low23));
  lines[2] = as_int(_mm256_unpacklo_epi64(high01, high23));
  lines[3] = as_int(_mm256_unpackhi_epi64(high01, high23));
}

struct Codes {
  Int part[2];
};
struct Groups {
  Float part[2];
};

// [p[0:32], q[0:32]]
inline Codes load_codes(const void* p, const void* q) { return {{load_int(p), load_int(q)}}; }
// [p[0:32] >> first, p[0:32] >> second], shifted as words: mask afterwards.
template <int first, int second>
inline Codes shifted_twice(const std::uint8_t* p) {
  const Int bytes = load_int(p);
  return {{shift_right_logical<first>(bytes), shift_right_logical<second>(bytes)}};
}
// [p[0:16] & 15, p[0:16] >> 4, q[0:16] & 15, q[0:16] >> 4]
inline Codes nibbles(const std::uint8_t* p, const std::uint8_t* q) {
  const __m256i counts = _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0);
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i first =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i second =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
  return {{as_int(_mm256_and_si256(_mm256_srlv_epi32(first, counts), mask)),
           as_int(_mm256_and_si256(_mm256_srlv_epi32(second, counts), mask))}};
}
// table[code] for codes 0..15
inline Int look_up(const std::int8_t (&table)[16], Int codes) {
  const __m256i values =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return as_int(_mm256_shuffle_epi8(values, raw(codes)));
}
// Byte i: bit i of `bits` ? value : 0.
inline Codes bit_bytes(std::uint64_t bits, std::uint8_t value) {
  const __m256i source =
      _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
  Codes codes;
  for (int i = 0; i < 2; ++i) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(bits >> (32 * i)));
    const __m256i found = _mm256_and_si256(_mm256_shuffle_epi8(word, source), bit);
    codes.part[i] = as_int(_mm256_and_si256(_mm256_cmpeq_epi8(found, bit),
                                            _mm256_set1_epi8(static_cast<char>(value))));
  }
  return codes;
}

// Eight bytes from each word.
inline Codes word_codes(const std::uint64_t (&w)[8]) {
  Codes codes;
  for (int i = 0; i < 2; ++i) {
    codes.part[i] = as_int(_mm256_set_epi64x(
        static_cast<long long>(w[4 * i + 3]), static_cast<long long>(w[4 * i + 2]),
        static_cast<long long>(w[4 * i + 1]), static_cast<long long>(w[4 * i])));
  }
  return codes;
}
// Code i: bit i of `bits` ? -code : code, as int8.
inline Codes negate_where(Codes codes, std::uint64_t bits) {
  const Codes mask = bit_bytes(bits, 255);
  for (int i = 0; i < 2; ++i) {
    const __m256i m = raw(mask.part[i]);
    codes.part[i] = as_int(_mm256_sub_epi8(_mm256_xor_si256(raw(codes.part[i]), m), m));
  }
  return codes;
}
// Lane i: nibble i of the 16 in `nibbles`.
inline Groups nibble_groups(std::uint64_t nibbles) {
  const __m128i bytes = _mm_cvtsi64_si128(static_cast<long long>(nibbles));
  const __m128i pairs =
      _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
  return {{as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(pairs))),
           as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(pairs, 8))))}};
}
inline Groups unsigned_groups(std::uint64_t low, std::uint64_t high) {
  const __m128i first = _mm_cvtsi64_si128(static_cast<long long>(low));
  const __m128i second = _mm_cvtsi64_si128(static_cast<long long>(high));
  return {{as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(first))),
           as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(second)))}};
}
inline Groups signed_groups(std::uint64_t low, std::uint64_t high) {
  const __m128i first = _mm_cvtsi64_si128(static_cast<long long>(low));
  const __m128i second = _mm_cvtsi64_si128(static_cast<long long>(high));
  return {{as_float(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(first))),
           as_float(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second)))}};
}
inline Groups unsigned_groups(Words bytes) {
  const __m128i low = (__m128i)bytes;
  return {{as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low))),
           as_float(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(low, 8))))}};
}
// Lanes 0..7: the fp16 number at p; lanes 8..15: the next one.
inline Groups half_pair_groups(const std::uint8_t* p) {
  const __m128 pair = _mm_cvtph_ps(_mm_loadu_si32(p));
  return {{as_float(_mm256_broadcastss_ps(pair)),
           as_float(_mm256_broadcastss_ps(_mm_movehdup_ps(pair)))}};
}
// Never needed: a vector does not hold two halves of Groups.
inline Float join(Float a, Float) { return a; }
inline Float upper_lanes(Float a) { return a; }
inline Float strided_halves(const std::uint8_t* p, int stride) {
  std::uint16_t h[8];
  for (int i = 0; i < 8; ++i) std::memcpy(&h[i], p + stride * i, 2);
  const __m128i halves =
      _mm_set_epi16(static_cast<short>(h[7]), static_cast<short>(h[6]), static_cast<short>(h[5]),
                    static_cast<short>(h[4]), static_cast<short>(h[3]), static_cast<short>(h[2]),
                    static_cast<short>(h[1]), static_cast<short>(h[0]));
  return as_float(_mm256_cvtph_ps(halves));
}
// The 8 fp16 numbers at p, p + stride, ... twice; or those at p, then those at q.
template <int stride>
inline Groups half_groups(const std::uint8_t* p) {
  const Float halves = strided_halves(p, stride);
  return {{halves, halves}};
}
template <int stride>
inline Groups half_groups(const std::uint8_t* p, const std::uint8_t* q) {
  return {{strided_halves(p, stride), strided_halves(q, stride)}};
}

// Factors for the lanes of code vector `index` (32 columns) of a segment.
template <int group_size>
inline Float spread(const Groups& groups, int index) {
  const Int lane = {0, 1, 2, 3, 4, 5, 6, 7};
  const int first = index * (32 / group_size);
  const Int group = group_size == 32 ? broadcast(first % 8) : (lane >> 2) + broadcast(first % 8);
  return as_float(_mm256_permutevar8x32_ps((__m256)groups.part[first / 8], raw(group)));
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
