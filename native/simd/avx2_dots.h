// SPDX-License-Identifier: Apache-2.0
// Dot products of AVX2: bytes become words on the way.
#pragma once

#include "simd/avx2.h"

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr bool kDotsAnyByte = false;
// vpmaddubsw saturates at int16: exact because 4 products of at most 63 * 127 fit.
inline Int widen_add(Int accumulator, __m256i words) {
  return accumulator + as_int(_mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
inline Int dot_unsigned(Int accumulator, Int weights, Int inputs) {
  return widen_add(accumulator, _mm256_maddubs_epi16(raw(weights), raw(inputs)));
}
inline Int dot_unsigned(Int accumulator, Int weights0, Int inputs0, Int weights1, Int inputs1) {
  return widen_add(accumulator,
                   _mm256_add_epi16(_mm256_maddubs_epi16(raw(weights0), raw(inputs0)),
                                    _mm256_maddubs_epi16(raw(weights1), raw(inputs1))));
}
// |weight| * (sign(weight) * input): exact because 2 * 128 * 127 fits int16 and no input is -128.
inline constexpr int kSignedBias = 0;
inline Int signed_codes(Int codes) { return codes; }
inline Int dot_signed(Int accumulator, Int weights, Int inputs) {
  const __m256i magnitudes = _mm256_abs_epi8(raw(weights));
  const __m256i signed_inputs = _mm256_sign_epi8(raw(inputs), raw(weights));
  return widen_add(accumulator, _mm256_maddubs_epi16(magnitudes, signed_inputs));
}
inline constexpr int kInputBias = 0;
// Even and odd bytes as words: vpmaddubsw would saturate.
inline Int dot_bytes(Int accumulator, Int inputs, Int weights) {
  const __m256i even_inputs = _mm256_and_si256(raw(inputs), _mm256_set1_epi16(255));
  const __m256i odd_inputs = _mm256_srli_epi16(raw(inputs), 8);
  const __m256i even_weights = _mm256_srai_epi16(_mm256_slli_epi16(raw(weights), 8), 8);
  const __m256i odd_weights = _mm256_srai_epi16(raw(weights), 8);
  return accumulator + as_int(_mm256_add_epi32(_mm256_madd_epi16(even_inputs, even_weights),
                                               _mm256_madd_epi16(odd_inputs, odd_weights)));
}
inline Int dot_words(Int accumulator, Int a, Int b) {
  return accumulator + as_int(_mm256_madd_epi16(raw(a), raw(b)));
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
