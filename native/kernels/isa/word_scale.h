// SPDX-License-Identifier: Apache-2.0
// Numbers as integers of 16 bits under a common scale, such that their Euclidean norm is kTopNorm: the
// sum of products of two such vectors fits 32 bits, however long they are (up to some 10^8 numbers,
// whose roundings would count).
#pragma once

#include <cmath>
#include <limits>

#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

inline constexpr float kTopNorm = 32767.0f;

struct WordScale {
  float to_codes;
  float to_values;  // NaN where a number is not finite
};

// From the sum of the squares of the numbers.
inline WordScale word_scale(float squares) {
  if (squares < 0x1p-120f) return {0.0f, 0.0f};
  if (!std::isfinite(squares)) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  const float norm = std::sqrt(squares);
  return {kTopNorm / norm, norm / kTopNorm};
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
