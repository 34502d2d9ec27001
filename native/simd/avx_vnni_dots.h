// SPDX-License-Identifier: Apache-2.0
// Dot products of AVX-VNNI, for vectors of AVX2.
#pragma once

#include "simd/avx2.h"

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr bool kDotsAnyByte = true;
// accumulator + the sum of four products of uint8 and int8, of two products of int16. EVEX_DOTS: the
// same instructions as AVX512_VNNI encodes them, so that a machine that has only those can test all the
// rest.
inline Int four_products(Int accumulator, Int unsigned_bytes, Int signed_bytes) {
#if defined(LILLIPUT_EVEX_DOTS)
  __asm__("%{evex%} vpdpbusd %2, %1, %0"
          : "+x"(accumulator)
          : "x"(unsigned_bytes), "xm"(signed_bytes));
  return accumulator;
#else
  return as_int(_mm256_dpbusd_avx_epi32(raw(accumulator), raw(unsigned_bytes), raw(signed_bytes)));
#endif
}
inline Int dot_words(Int accumulator, Int a, Int b) {
#if defined(LILLIPUT_EVEX_DOTS)
  __asm__("%{evex%} vpdpwssd %2, %1, %0" : "+x"(accumulator) : "x"(a), "xm"(b));
  return accumulator;
#else
  return as_int(_mm256_dpwssd_avx_epi32(raw(accumulator), raw(a), raw(b)));
#endif
}

inline Int dot_unsigned(Int accumulator, Int weights, Int inputs) {
  return four_products(accumulator, weights, inputs);
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
// vpdpbusd wants unsigned weights: signed codes are stored with 128 added.
inline constexpr int kSignedBias = 128;
inline Int signed_codes(Int codes) {
  return codes ^ broadcast(static_cast<std::int32_t>(0x80808080u));
}
inline Int dot_signed(Int accumulator, Int weights, Int inputs) {
  return four_products(accumulator, weights, inputs);
}
inline constexpr int kInputBias = 0;
inline Int dot_bytes(Int accumulator, Int inputs, Int weights) {
  return four_products(accumulator, inputs, weights);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
