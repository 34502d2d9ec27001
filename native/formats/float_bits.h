// SPDX-License-Identifier: Apache-2.0
// Bit patterns of small floats and unaligned loads. Memory-mapped blocks have any alignment.
//
// Everything here and in the format headers sits in the inline namespace LILLIPUT_ISA: these
// headers are compiled once per instruction set, and the linker would otherwise keep one copy for
// all of them.
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>

#ifndef LILLIPUT_ISA
#define LILLIPUT_ISA portable
#endif

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

template <typename T>
inline T load(const void* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// fp16 -> fp32, exact for every finite value; subnormals too, as long as the FPU does not flush
// them. Formula: the 15 magnitude bits, read as a float's low exponent and mantissa bits, times
// 2^(127 - 15).
inline float half_to_float(std::uint16_t half) {
#ifdef __F16C__
  return _cvtsh_ss(half);
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t finite = std::bit_cast<std::uint32_t>(scaled);
  const bool is_special = magnitude >= (0x7c00u << 13);
  return std::bit_cast<float>(sign | (is_special ? magnitude | 0x7f800000u : finite));
#endif
}

inline float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
