// SPDX-License-Identifier: Apache-2.0
// Floats to the codes of a cache and of its queries: value = scale * code, nearest even.
#pragma once

#include <cstdint>

#include "kernels/isa/lanes.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Of a group of 16 or 32 floats; 0 is always among them. poison: NaN where one is NaN or infinite,
// so that it is not lost in the integers, otherwise 0.
struct Extremes {
  float highest;
  float lowest;
  float poison;

  float magnitude() const { return highest > -lowest ? highest : -lowest; }
};

inline Extremes extremes(const float* x, std::int64_t count) {
  simd::Float highest = simd::zero();
  simd::Float lowest = simd::zero();
  simd::Float poison = simd::zero();
  for (std::int64_t i = 0; i < count; i += simd::kLanes) {
    const simd::Float values = simd::load(x + i);
    highest = simd::max(highest, values);
    lowest = simd::min(lowest, values);
    poison += values * simd::zero();
  }
  return {simd::max_lane(highest), -simd::max_lane(-lowest), simd::sum(poison)};
}

struct CodeRange {
  float zero_point;
  float least;
  float most;

  // From the value 0 to the furthest one.
  float reach() const { return most - zero_point; }
};
inline constexpr CodeRange kSignedBytes{0.0f, -127.0f, 127.0f};
// Sixteen levels on both sides of 0, none of them at it: none is lost to symmetry.
inline constexpr CodeRange kNibbles{7.5f, 0.0f, 15.0f};

// code = round(x / scale + zero_point) within [least, most]; the zero point, rounded, where the
// scale is 0.
inline void encode_group(const float* x, std::int64_t count, float scale, const CodeRange& range,
                         std::int8_t* codes) {
  const simd::Float inverse = simd::broadcast(scale != 0.0f ? 1.0f / scale : 0.0f);
  for (std::int64_t i = 0; i < count; i += simd::kLanes) {
    const simd::Float scaled = simd::load(x + i) * inverse + simd::broadcast(range.zero_point);
    const simd::Float bounded =
        simd::min(simd::max(scaled, simd::broadcast(range.least)), simd::broadcast(range.most));
    simd::store_int8(codes + i, simd::round_to_int(bounded));
  }
}

// H x / sqrt(b): see VectorKernels::rotate.
void rotate(const float* x, std::int64_t head_dim, float* y);

}  // namespace lilliput::kernels::LILLIPUT_ISA
