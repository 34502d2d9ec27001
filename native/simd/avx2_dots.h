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
// Two words, as vpmaddubsw gives them: what is to be multiplied by a word need not become one before.
inline constexpr int kPartsOfDots = 2;
inline Int dot_parts(Int parts, Int weights0, Int inputs0, Int weights1, Int inputs1) {
  const __m256i first = _mm256_maddubs_epi16(raw(weights0), raw(inputs0));
  const __m256i second = _mm256_maddubs_epi16(raw(weights1), raw(inputs1));
  Int sum = as_int(_mm256_add_epi16(raw(parts), _mm256_add_epi16(first, second)));
  // Otherwise GCC makes trees of the sums of a group, which need more registers than there are.
  __asm__("" : "+x"(sum));
  return sum;
}
inline Int part_factor(Int factor) {
  const __m256i low_words =
      _mm256_broadcastsi128_si256(_mm_set_epi8(13, 12, 13, 12, 9, 8, 9, 8, 5, 4, 5, 4, 1, 0, 1, 0));
  return as_int(_mm256_shuffle_epi8(raw(factor), low_words));
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
