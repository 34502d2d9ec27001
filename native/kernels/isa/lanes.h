// SPDX-License-Identifier: Apache-2.0
// Sixteen float lanes on every instruction set, so that a kernel is written once.
// Included only by files compiled once per instruction set; everything lives in that instruction
// set's namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "formats/float_bits.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace lilliput::kernels::LILLIPUT_ISA {

inline constexpr int kLanes = 16;

using formats::half_to_float;

// float32 -> float16 bits, round to nearest even; beyond 65519 becomes infinity.
inline std::uint16_t float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (bits <
      0x38800000) {  // subnormal: adding 0.5 puts the unit of float16's smallest step at bit 0
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000) >> 13));
}

// maximum and minimum return the second operand where either is NaN, on every instruction set.
#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes load(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline void store(std::uint16_t* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes maximum(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
// 2^n for whole n in [-126, 127], given as n + 1.5 * 2^23.
inline Lanes power_of_two(Lanes n_and_magic) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(n_and_magic.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
}
// 0 where x < limit, else a: where x is NaN too.
inline Lanes zero_where_below(Lanes x, float limit, Lanes a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};
inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Lanes load(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline void store(std::uint16_t* p, Lanes a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Lanes add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes subtract(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes multiply(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes divide(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes minimum(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes maximum(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline __m256 power_of_two(__m256 n_and_magic) {
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(n_and_magic), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
// 2^n for whole n in [-126, 127], given as n + 1.5 * 2^23.
inline Lanes power_of_two(Lanes n_and_magic) {
  return {power_of_two(n_and_magic.low), power_of_two(n_and_magic.high)};
}
// 0 where x < limit, else a: where x is NaN too.
inline Lanes zero_where_below(Lanes x, float limit, Lanes a) {
  const __m256 limits = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.low, limits, _CMP_NLT_UQ), a.low),
          _mm256_and_ps(_mm256_cmp_ps(x.high, limits, _CMP_NLT_UQ), a.high)};
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct Lanes {
  float32x4_t v[4];
};
template <typename F>
inline Lanes each_four(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Lanes broadcast(float x) {
  return each_four([=](int) { return vdupq_n_f32(x); });
}
inline Lanes zero() { return broadcast(0.0f); }
inline Lanes load(const float* p) {
  return each_four([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline Lanes load(const std::uint16_t* p) {
  return each_four([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline void store(float* p, const Lanes& a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline void store(std::uint16_t* p, const Lanes& a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline Lanes add(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Lanes subtract(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Lanes multiply(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Lanes divide(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each_four([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
// fminnm and fmaxnm return the other operand for a NaN, whichever it is.
inline Lanes minimum(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline Lanes maximum(const Lanes& a, const Lanes& b) {
  return each_four([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
// 2^n for whole n in [-126, 127], given as n + 1.5 * 2^23.
inline Lanes power_of_two(const Lanes& n_and_magic) {
  return each_four([&](int i) {
    const int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(n_and_magic.v[i]), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
  });
}
// 0 where x < limit, else a: where x is NaN too.
inline Lanes zero_where_below(const Lanes& x, float limit, const Lanes& a) {
  return each_four([&](int i) {
    const uint32x4_t is_below = vcltq_f32(x.v[i], vdupq_n_f32(limit));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.v[i]), is_below));
  });
}

#else

// Plain loops: the meaning of each function above, and what the compiler makes of it on any
// machine.
struct Lanes {
  float v[kLanes];
};
template <typename F>
inline Lanes each_lane(F f) {
  Lanes result;
  for (int i = 0; i < kLanes; ++i) result.v[i] = f(i);
  return result;
}
inline Lanes broadcast(float x) {
  return each_lane([=](int) { return x; });
}
inline Lanes zero() { return broadcast(0.0f); }
inline Lanes load(const float* p) {
  return each_lane([=](int i) { return p[i]; });
}
inline Lanes load(const std::uint16_t* p) {
  return each_lane([=](int i) { return half_to_float(p[i]); });
}
inline void store(float* p, const Lanes& a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline void store(std::uint16_t* p, const Lanes& a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.v[i]);
}
inline Lanes add(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes subtract(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes multiply(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes divide(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each_lane([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Lanes minimum(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes maximum(const Lanes& a, const Lanes& b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
// 2^n for whole n in [-126, 127], given as n + 1.5 * 2^23.
inline Lanes power_of_two(const Lanes& n_and_magic) {
  return each_lane([&](int i) {
    std::uint32_t bits;
    std::memcpy(&bits, &n_and_magic.v[i], 4);
    bits = (bits + 127) << 23;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  });
}
// 0 where x < limit, else a: where x is NaN too.
inline Lanes zero_where_below(const Lanes& x, float limit, const Lanes& a) {
  return each_lane([&](int i) { return x.v[i] < limit ? 0.0f : a.v[i]; });
}

#endif

// Sum and maximum of the lanes, always in the same order: halves onto halves.
#if defined(__AVX512F__) || defined(__AVX2__)
inline float sum(__m256 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(__m256 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
#if defined(__AVX512F__)
inline __m256 low_half(Lanes a) { return _mm512_castps512_ps256(a.v); }
inline __m256 high_half(Lanes a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
inline __m256 low_half(Lanes a) { return a.low; }
inline __m256 high_half(Lanes a) { return a.high; }
#endif
inline float sum(Lanes a) { return sum(_mm256_add_ps(low_half(a), high_half(a))); }
inline float largest(Lanes a) { return largest(_mm256_max_ps(low_half(a), high_half(a))); }
#elif defined(__ARM_FEATURE_DOTPROD)
inline float sum(const Lanes& a) {
  const float32x4_t s = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  return vaddv_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
}
inline float largest(const Lanes& a) {
  return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a.v[0], a.v[2]), vmaxnmq_f32(a.v[1], a.v[3])));
}
#else
inline float sum(const Lanes& a) {
  float v[kLanes];
  store(v, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
}
inline float largest(const Lanes& a) {
  float v[kLanes];
  store(v, a);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  }
  return v[0];
}
#endif

// e^x with relative error below 3e-7, NaN for NaN; x above 88 counts as 88, and e^x is 0 below
// -87.3 (minus infinity included). x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor series to
// r^7, whose remainder is below 5e-9.
inline Lanes exponential(Lanes x) {
  constexpr float kLowest = -87.3f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Lanes bounded = minimum(broadcast(88.0f), maximum(broadcast(kLowest), x));
  const Lanes n_and_magic =
      add(multiply(bounded, broadcast(1.44269504088896341f)), broadcast(kMagic));
  const Lanes n = subtract(n_and_magic, broadcast(kMagic));
  // ln 2 in two parts, the first with few bits, so that n times it is exact.
  Lanes r = multiply_add(n, broadcast(-0.693359375f), bounded);
  r = multiply_add(n, broadcast(2.12194440054690583e-4f), r);
  Lanes p = broadcast(1.0f / 5040.0f);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = multiply_add(p, r, broadcast(coefficient));
  }
  return zero_where_below(x, kLowest, multiply(p, power_of_two(n_and_magic)));
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
