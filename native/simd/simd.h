// SPDX-License-Identifier: Apache-2.0
// The thin layer over instruction sets: vectors of kLanes 32-bit numbers and the few operations
// that the kernels need. A kernel is written once against it and compiled once per instruction
// set. Each set's file has the same names:
//
//   Float, Int         vectors of kLanes float / int32; + - * & | ^ are elementwise
//   kRegisters         vectors that the machine has names for
//   fma, max, sum, ...  what their names say; sum and max_lane join the lanes
//   stream             store past the caches, p aligned to a vector; end_streams before others read
//   dot_unsigned, dot_signed
//                      per lane: accumulator + the sum of four byte products, exact. Weights are
//                      unsigned up to 63 (127 where one product at a time is given), or signed
//                      codes as `signed_codes` returns them; inputs are int8 within -127..127
//   kDotsAnyByte       whether weights may be any uint8, and a dot is one instruction
//   dot_parts          as dot_unsigned, for sums that fit int16: each in kPartsOfDots words of a lane,
//                      which dot_words adds when it multiplies them by a part_factor: a word, the low
//                      one of a lane, where the parts are (of one part, nothing beside it)
//   dot_bytes          per lane: accumulator + the sum of four products of any uint8 input, stored
//                      less kInputBias, and any int8 weight, exact
//   kSignedBias        what `signed_codes` adds to each code: a dot holds kSignedBias * sum(inputs)
//                      too much
//   transpose          kLanes x kLanes int32
//   add_bytes          per byte, modulo 256
//   multiply_words, multiply_fractions, dot_words
//                      per 16-bit half: the low half of the product; the product by 2^-15, rounded;
//                      per lane: accumulator + the sum of two signed 16-bit products
//   interleave_low, interleave_high, pack_words
//                      within each 128 bits: [a0 b0 a1 b1], [a2 b2 a3 b3]; lanes of both as int16
//                      words, saturated: pack_words(interleave_low(a, b), interleave_high(a, b))
//                      holds the words (a, b) of each lane
//   load_lines         four words of each of kLanes stored rows, rows as lanes
//   Codes              64 byte codes in column order, and the unpacking steps that give them
//   Groups             16 floats: one or two for each group of a segment
//   spread             the factors for the lanes of one code vector
#pragma once

#include <cstdint>
#include <cstring>

#ifndef LILLIPUT_ISA
#define LILLIPUT_ISA portable
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "simd/avx512_vnni.h"
#elif defined(__AVX2__) && defined(__FMA__)
#if defined(__AVXVNNI__) || defined(LILLIPUT_EVEX_DOTS)
#include "simd/avx_vnni_dots.h"
#else
#include "simd/avx2_dots.h"
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include "simd/neon_dotprod.h"
#else
#include "simd/scalar.h"
#endif

namespace lilliput::simd {
inline namespace LILLIPUT_ISA {

inline constexpr int kCodeVectors = 16 / kLanes;  // vectors in Codes and in Groups
inline constexpr int kSegment = 256;              // columns handled together

// broadcast(words[i]) of n words, i known to the compiler.
template <int n>
inline Int broadcast_one(const std::int32_t* words, int i) {
#if defined(__ARM_FEATURE_DOTPROD)
  // Dot products take a lane of an operand: four words are loaded at once, and none is broadcast.
  if constexpr (n % 4 == 0) {
    const Int four = load_int(words + i / 4 * 4);
    return broadcast(four[i % 4]);
  }
#endif
  return broadcast(words[i]);
}

inline Codes operator&(Codes a, Codes b) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] &= b.part[i];
  return a;
}
inline Codes operator&(Codes a, std::uint8_t mask) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] &= broadcast(0x01010101 * mask);
  return a;
}
inline Codes operator|(Codes a, Codes b) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] |= b.part[i];
  return a;
}
inline Codes operator^(Codes a, Codes b) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] ^= b.part[i];
  return a;
}
// Shifts of whole words: mask first or afterwards.
template <int bits>
inline Codes shift_left(Codes a) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] <<= bits;
  return a;
}
template <int bits>
inline Codes shift_right(Codes a) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] = shift_right_logical<bits>(a.part[i]);
  return a;
}
inline Codes load_codes(const void* bytes) {
  Codes codes;
  for (int i = 0; i < kCodeVectors; ++i) {
    codes.part[i] = load_int(static_cast<const std::uint8_t*>(bytes) + 4 * kLanes * i);
  }
  return codes;
}
inline Codes look_up(const std::int8_t (&table)[16], Codes codes) {
  for (int i = 0; i < kCodeVectors; ++i) codes.part[i] = look_up(table, codes.part[i]);
  return codes;
}
inline Codes signed_codes(Codes codes) {
  for (int i = 0; i < kCodeVectors; ++i) codes.part[i] = signed_codes(codes.part[i]);
  return codes;
}
// signed_codes(look_up(table, codes)): what signed codes need is added to the table.
inline Int look_up_signed(const std::int8_t (&table)[16], Int codes) {
  std::int8_t stored[16];
  for (int i = 0; i < 16; ++i) stored[i] = static_cast<std::int8_t>(table[i] + kSignedBias);
  return look_up(stored, codes);
}
inline Codes look_up_signed(const std::int8_t (&table)[16], Codes codes) {
  for (Int& part : codes.part) part = look_up_signed(table, part);
  return codes;
}
inline Int dot_signed(Int accumulator, Int weights0, Int inputs0, Int weights1, Int inputs1) {
  return dot_signed(dot_signed(accumulator, weights0, inputs0), weights1, inputs1);
}

inline Groups operator*(Groups a, float factor) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] *= broadcast(factor);
  return a;
}
inline Groups operator*(Groups a, Groups b) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] *= b.part[i];
  return a;
}
inline Groups operator+(Groups a, Groups b) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] += b.part[i];
  return a;
}
inline Groups operator-(Groups a, float offset) {
  for (int i = 0; i < kCodeVectors; ++i) a.part[i] -= broadcast(offset);
  return a;
}
inline Groups load_groups(const float* values) {
  Groups groups;
  for (int i = 0; i < kCodeVectors; ++i) groups.part[i] = load(values + kLanes * i);
  return groups;
}

// Lanes 0..7 and 8..15.
inline Groups split_groups(float low, float high) {
  if constexpr (kCodeVectors == 1) return {join(broadcast(low), broadcast(high))};
  Groups groups;
  for (int i = 0; i < kCodeVectors; ++i)
    groups.part[i] = broadcast(2 * i < kCodeVectors ? low : high);
  return groups;
}
inline Groups equal_groups(float value) { return split_groups(value, value); }
// The same 8 numbers twice.
inline Groups load_groups_twice(const float (&values)[8]) {
  float twice[16];
  std::memcpy(twice, values, sizeof(values));
  std::memcpy(twice + 8, values, sizeof(values));
  return load_groups(twice);
}

// What a format's `unpack` gives for 256 columns of one row:
// weight = scale[group] * (code - zero point) - minimum[group], the zero point a constant of the
// format.
struct Segment {
  Codes codes[4];
  // 16 groups: their scales. 8 groups: their scales, then what multiplies the sum of the inputs:
  // their minimums, or their scales again where the format has a zero point.
  Groups scale;
  Groups minimum;  // of 16 groups
};

// Where the `unpack_rows` of a format with integer group scales may leave 256 columns of kLanes
// blocks, a lane each: scales, minimums and factors first, then the codes, pair of groups by pair.
// weight = factor * scale[group] * (code - zero point) - minimum_factor * minimum[group], the zero
// point a constant of the format; scales and minimums fit int16.
struct alignas(64) RowLanes {
  Int codes[kSegment / 4];  // four codes of consecutive columns of each row
  Int scale[16];
  Int minimum[16];
  Float factor;
  Float minimum_factor;

  // Takes the codes of the columns from 4 * quad on.
  [[gnu::always_inline]] void put(int quad, const Int (&four)[4]) {
    for (int i = 0; i < 4; ++i) codes[quad + i] = four[i];
  }
};
// What the `unpack_rows` of a format with a float scale for every 32 columns gives, in this order:
// scale[group], minus_minimum[group] where the format has minimums, and by `put` the codes, group by
// group. weight = scale[group] * (code - zero point) - minimum[group], codes as in Segment.

// Of 8 blocks, fp16 numbers two in a word.
[[gnu::always_inline]] inline void half_pairs(const Int* words, Float* values) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = half_lanes(words[i]);
    values[2 * i + 1] = half_lanes(shift_right_logical<16>(words[i]));
  }
}
// The scale of a group is factor * code: lanes with a common factor take both.
template <typename Lanes>
[[gnu::always_inline]] inline void put_scale(Lanes& lanes, int group, Float factor, Int code) {
  if constexpr (requires { lanes.factor; }) {
    lanes.factor = factor;
    lanes.scale[group] = code;
  } else {
    lanes.scale[group] = factor * to_float(code);
  }
}
// Of 8 blocks, the four words of codes from `words` on: column i low and 16 + i high in byte i.
template <typename Lanes, typename Convert>
[[gnu::always_inline]] inline void put_nibbles(const Int* words, Lanes& lanes, Convert convert) {
#pragma GCC unroll 8
  for (int block = 0; block < 8; ++block) {
    Int low[4];
    Int high[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int both = words[4 * block + i];
      low[i] = convert(both & broadcast(0x0f0f0f0f));
      high[i] = convert(shift_right_logical<4>(both) & broadcast(0x0f0f0f0f));
    }
    lanes.put(8 * block, low);
    lanes.put(8 * block + 4, high);
  }
}
// Of 256 columns, the 16 words of two-bit codes from `words` on: column 128 h + 32 s + i in the bits
// 2 s and 2 s + 1 of byte 32 h + i.
template <typename Lanes>
[[gnu::always_inline]] inline void put_two_bits(const Int* words, Lanes& lanes) {
#pragma GCC unroll 8
  for (int part = 0; part < 8; ++part) {
    const Int* bits = words + part / 4 * 8;
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      Int codes[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        codes[j] = (bits[i + j] >> (part % 4 * 2)) & broadcast(0x03030303);
      }
      lanes.put(8 * part + i, codes);
    }
  }
}
// As put_nibbles, and column j's fifth bit in bit j of high_bits[block].
template <typename Lanes>
[[gnu::always_inline]] inline void put_five_bits(const Int* words, const Int (&high_bits)[8],
                                                 Lanes& lanes) {
  const Int nibble = broadcast(0x0f0f0f0f);
#pragma GCC unroll 8
  for (int block = 0; block < 8; ++block) {
    // Four bits, 7 apart from where they are wanted.
    const auto fifths = [&](int quad) {
      const Int bits = (high_bits[block] >> (4 * quad)) & broadcast(15);
      return (bits * broadcast(0x02040810)) & broadcast(0x10101010);
    };
    Int low[4];
    Int high[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int both = words[4 * block + i];
      low[i] = (both & nibble) | fifths(i);
      high[i] = (shift_right_logical<4>(both) & nibble) | fifths(4 + i);
    }
    lanes.put(8 * block, low);
    lanes.put(8 * block + 4, high);
  }
}
// The lower words of both, `low` in the lower half of a lane.
inline Int two_words(Int low, Int high) { return (low & broadcast(0xffff)) | (high << 16); }
// Byte `index` of each lane.
inline Int byte_lanes(Int a, int index) { return ((a >> (8 * index)) & broadcast(255)); }

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::simd
