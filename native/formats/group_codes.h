// SPDX-License-Identifier: Apache-2.0
// The 6-bit scale and minimum codes of the 8 groups in a Q4_K or Q5_K block.
//
// layout   12 bytes a[0:4] b[0:4] c[0:4], for j = 0..3:
//          scale j = a[j] bits 0..5, minimum j = b[j] bits 0..5,
//          scale 4 + j = c[j] low nibble | a[j] top 2 bits << 4, minimum 4 + j = c[j] high nibble |
//          b[j] top 2 bits << 4
#pragma once

#include <cstdint>

#include "formats/float_bits.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

struct GroupCodes {
  std::uint8_t scale[8];
  std::uint8_t minimum[8];
};

// Four bytes at a time, as the words a, b, c of the layout.
inline GroupCodes unpack_group_codes(const std::uint8_t (&bytes)[12]) {
  const auto a = load<std::uint32_t>(bytes);
  const auto b = load<std::uint32_t>(bytes + 4);
  const auto c = load<std::uint32_t>(bytes + 8);
  const std::uint32_t words[4] = {a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u),
                                  b & 0x3f3f3f3fu, (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u)};
  GroupCodes codes;
  std::memcpy(codes.scale, words, 8);
  std::memcpy(codes.minimum, words + 2, 8);
  return codes;
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
