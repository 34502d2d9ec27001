// SPDX-License-Identifier: Apache-2.0
// The 6-bit scale and minimum codes of the 8 groups in a Q4_K or Q5_K block.
//
// layout   12 bytes a[0:4] b[0:4] c[0:4], for j = 0..3: scale j = a[j] bits 0..5, minimum j = b[j]
//          bits 0..5, scale 4 + j = c[j] low nibble | a[j] top 2 bits << 4, minimum 4 + j = c[j]
//          high nibble | b[j] top 2 bits << 4
#pragma once

#include <cstdint>

#include "formats/float_bits.h"
#include "simd/simd.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct GroupCodes {
  std::uint8_t scale[8];
  std::uint8_t minimum[8];
};

// The 16 codes as bytes: scales 0..7, minimums 0..7. Reads the 4 bytes after group_codes too, which
// are codes.
inline simd::Words group_code_words(const std::uint8_t (&group_codes)[12]) {
  const auto v = load<simd::Words>(group_codes);
  const simd::Words first = simd::Words{v[0], v[0], v[1], v[1]} >> simd::Words{0, 2, 0, 2};
  const simd::Words second = simd::Words{v[2], v[2], v[2], v[2]} >> simd::Words{0, 0, 0, 4};
  return (first & simd::Words{0x3f3f3f3fu, 0x30303030u, 0x3f3f3f3fu, 0x30303030u}) |
         (second & simd::Words{0, 0x0f0f0f0fu, 0, 0x0f0f0f0fu});
}

// Scales, minimums and both factors from the first 4 words of a block in each lane.
template <typename Lanes>
[[gnu::always_inline]] inline void unpack_group_words(const simd::Int* words, Lanes& lanes) {
  const simd::Int first = simd::broadcast(0x3f3f3f3f);
  const simd::Int low = simd::broadcast(0x0f0f0f0f);
  const simd::Int top = simd::broadcast(0x30303030);
  lanes.factor = simd::half_lanes(words[0]);
  lanes.minimum_factor = simd::half_lanes(simd::shift_right_logical<16>(words[0]));
  const simd::Int scales[2] = {words[1] & first,
                               (words[3] & low) | (simd::shift_right_logical<2>(words[1]) & top)};
  const simd::Int minimums[2] = {words[2] & first,
                                 (simd::shift_right_logical<4>(words[3]) & low) |
                                     (simd::shift_right_logical<2>(words[2]) & top)};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    lanes.scale[i] = simd::byte_lanes(scales[i / 4], i % 4);
    lanes.minimum[i] = simd::byte_lanes(minimums[i / 4], i % 4);
  }
}

inline GroupCodes unpack_group_codes(const std::uint8_t (&group_codes)[12]) {
  return std::bit_cast<GroupCodes>(group_code_words(group_codes));
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
