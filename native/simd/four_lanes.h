// SPDX-License-Identifier: Apache-2.0
// Of simd.h, what instruction sets of 4 lanes share: operators of compiler vectors, which any
// machine has instructions for.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/float_bits.h"

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kLanes = 4;
using Float = float __attribute__((vector_size(16), may_alias));
using Int = std::int32_t __attribute__((vector_size(16), may_alias));
using Unsigned = std::uint32_t __attribute__((vector_size(16), may_alias));
using Words = Unsigned;
using Shorts = std::int16_t __attribute__((vector_size(16), may_alias));
using UnsignedBytes = std::uint8_t __attribute__((vector_size(16), may_alias));
using UnsignedShorts = std::uint16_t __attribute__((vector_size(16), may_alias));

inline Float load(const float* p) {
  Float a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
inline void store(float* p, Float a) { std::memcpy(p, &a, sizeof(a)); }
inline void stream(float* p, Float a) { store(p, a); }
inline void end_streams() {}
inline Int load_int(const void* p) {
  Int a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
inline void store_int(void* p, Int a) { std::memcpy(p, &a, sizeof(a)); }
inline Float broadcast(float a) { return Float{a, a, a, a}; }
inline Int broadcast(std::int32_t a) { return Int{a, a, a, a}; }
inline Float zero() { return broadcast(0.0f); }
inline Float to_float(Int a) { return __builtin_convertvector(a, Float); }
inline Float absolute(Float a) { return (Float)((Int)a & broadcast(0x7fffffff)); }
inline Float max(Float a, Float b) { return a > b ? a : b; }
inline Float min(Float a, Float b) { return a < b ? a : b; }
template <int bits>
inline Int shift_right_logical(Int a) {
  return (Int)((Unsigned)a >> bits);
}

inline Int add_bytes(Int a, Int b) { return (Int)((UnsignedBytes)a + (UnsignedBytes)b); }
inline Int multiply_words(Int a, Int b) { return (Int)((UnsignedShorts)a * (UnsignedShorts)b); }
inline Int multiply_fractions(Int a, Int b) {
  const auto words = [](Int x, Int y) { return (x * y + broadcast(0x4000)) >> 15; };
  const Int low = words((a << 16) >> 16, (b << 16) >> 16);
  return (low & broadcast(0xffff)) | (words(a >> 16, b >> 16) << 16);
}
inline Int broadcast_two(std::int64_t a) {
  const auto low = static_cast<std::int32_t>(a);
  const auto high = static_cast<std::int32_t>(a >> 32);
  return Int{low, high, low, high};
}

struct Codes {
  Int part[4];
};
struct Groups {
  Float part[4];
};

inline Int signed_codes(Int codes) { return codes; }

// [p[0:32], q[0:32]]
inline Codes load_codes(const void* p, const void* q) {
  const auto* first = static_cast<const std::uint8_t*>(p);
  const auto* second = static_cast<const std::uint8_t*>(q);
  return {{load_int(first), load_int(first + 16), load_int(second), load_int(second + 16)}};
}
// [p[0:32] >> first, p[0:32] >> second], shifted as words: mask afterwards.
template <int first, int second>
inline Codes shifted_twice(const std::uint8_t* p) {
  const Int a = load_int(p);
  const Int b = load_int(p + 16);
  return {{shift_right_logical<first>(a), shift_right_logical<first>(b),
           shift_right_logical<second>(a), shift_right_logical<second>(b)}};
}
// [p[0:16] & 15, p[0:16] >> 4, q[0:16] & 15, q[0:16] >> 4]
inline Codes nibbles(const std::uint8_t* p, const std::uint8_t* q) {
  const Int mask = broadcast(0x0f0f0f0f);
  const Int a = load_int(p);
  const Int b = load_int(q);
  return {{a & mask, shift_right_logical<4>(a) & mask, b & mask, shift_right_logical<4>(b) & mask}};
}
// Eight bytes from each word.
inline Codes word_codes(const std::uint64_t (&w)[8]) {
  Codes codes;
  std::memcpy(&codes, w, 64);
  return codes;
}

// Lanes 0..7: the fp16 number at p; lanes 8..15: the next one.
inline Groups half_pair_groups(const std::uint8_t* p) {
  const Float low = broadcast(formats::half_to_float(formats::load<std::uint16_t>(p)));
  const Float high = broadcast(formats::half_to_float(formats::load<std::uint16_t>(p + 2)));
  return {{low, low, high, high}};
}
// Never needed: a vector does not hold two halves of Groups.
inline Float join(Float a, Float) { return a; }
inline Float upper_lanes(Float a) { return a; }

// Factors for the lanes of code vector `index` (16 columns) of a segment.
template <int group_size>
inline Float spread(const Groups& groups, int index) {
  const int group = group_size == 32 ? index / 2 : index;
  return broadcast(groups.part[group / 4][group % 4]);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
