// SPDX-License-Identifier: Apache-2.0
// Codes and parameters of one block -> its stored bytes; the inverse of each format's `decode`.
// Layouts: src/lilliput/formats/<name>.py.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/all_formats.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// scale, minimum: fp16 bits.  scale_codes: as stored numbers, signed where the format's are.
struct BlockParameters {
  std::uint16_t scale = 0;
  std::uint16_t minimum = 0;
  std::int16_t scale_codes[16] = {};
  std::int16_t minimum_codes[16] = {};
};

// Fields of `bits` bits, layers of `chunk` columns, lowest bits first (see bit_packing.py);
// `shift` drops lower bits of the codes first.
template <int bits, int chunk, int n_bytes>
inline void pack_fields(const std::uint8_t* codes, int shift, std::uint8_t* bytes) {
  constexpr int layers = 8 / bits;
  constexpr int mask = (1 << bits) - 1;
  for (int start = 0; start < n_bytes; start += chunk) {
    for (int i = 0; i < chunk; ++i) {
      int byte = 0;
      for (int layer = 0; layer < layers; ++layer) {
        byte |= ((codes[start * layers + layer * chunk + i] >> shift) & mask) << (bits * layer);
      }
      bytes[start + i] = static_cast<std::uint8_t>(byte);
    }
  }
}

// Bit j of the word = bit 4 of code j.
inline std::uint32_t fifth_bits(const std::uint8_t* codes) {
  std::uint32_t word = 0;
  for (int j = 0; j < 32; ++j) word |= static_cast<std::uint32_t>(codes[j] >> 4 & 1) << j;
  return word;
}

inline void pack(q8_0::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int i = 0; i < 32; ++i) block.codes[i] = static_cast<std::int8_t>(codes[i] - 127);
}

inline void pack(q4_0::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  pack_fields<4, 16, 16>(codes, 0, block.codes);
}

inline void pack(iq4_nl::Block& block, const std::uint8_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  pack_fields<4, 16, 16>(codes, 0, block.codes);
}

inline void pack(q5_0::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.high_bits = fifth_bits(codes);
  pack_fields<4, 16, 16>(codes, 0, block.codes);
}

inline void pack(q4_1::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.minimum = parameters.minimum;
  pack_fields<4, 16, 16>(codes, 0, block.codes);
}

inline void pack(q5_1::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.minimum = parameters.minimum;
  block.high_bits = fifth_bits(codes);
  pack_fields<4, 16, 16>(codes, 0, block.codes);
}

inline void pack(q2_k::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.minimum = parameters.minimum;
  for (int g = 0; g < 16; ++g) {
    block.scale_codes[g] =
        static_cast<std::uint8_t>(parameters.scale_codes[g] | parameters.minimum_codes[g] << 4);
  }
  pack_fields<2, 32, 64>(codes, 0, block.codes);
}

inline void pack(q3_k::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  pack_fields<2, 32, 64>(codes, 0, block.codes);
  pack_fields<1, 32, 32>(codes, 2, block.high_bits);
  std::uint8_t six_bits[16];
  for (int g = 0; g < 16; ++g)
    six_bits[g] = static_cast<std::uint8_t>(parameters.scale_codes[g] + 32);
  pack_fields<4, 8, 8>(six_bits, 0, block.scale_codes);
  pack_fields<2, 4, 4>(six_bits, 4, block.scale_codes + 8);
}

// The 12 bytes of Q4_K and Q5_K; group_codes.h.
inline void pack_group_codes(const BlockParameters& parameters, std::uint8_t* bytes) {
  for (int j = 0; j < 4; ++j) {
    const int scale = parameters.scale_codes[j], late_scale = parameters.scale_codes[j + 4];
    const int minimum = parameters.minimum_codes[j], late_minimum = parameters.minimum_codes[j + 4];
    bytes[j] = static_cast<std::uint8_t>(scale | late_scale >> 4 << 6);
    bytes[4 + j] = static_cast<std::uint8_t>(minimum | late_minimum >> 4 << 6);
    bytes[8 + j] = static_cast<std::uint8_t>((late_scale & 15) | (late_minimum & 15) << 4);
  }
}

inline void pack(q4_k::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.minimum = parameters.minimum;
  pack_group_codes(parameters, block.group_codes);
  pack_fields<4, 32, 128>(codes, 0, block.codes);
}

inline void pack(q5_k::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  block.minimum = parameters.minimum;
  pack_group_codes(parameters, block.group_codes);
  pack_fields<4, 32, 128>(codes, 0, block.codes);
  pack_fields<1, 32, 32>(codes, 4, block.high_bits);
}

inline void pack(q6_k::Block& block, const std::uint8_t* codes, const BlockParameters& parameters) {
  block.scale = parameters.scale;
  pack_fields<4, 64, 128>(codes, 0, block.low_bits);
  pack_fields<2, 32, 64>(codes, 4, block.high_bits);
  for (int g = 0; g < 16; ++g)
    block.scale_codes[g] = static_cast<std::int8_t>(parameters.scale_codes[g]);
}

inline void pack(iq4_xs::Block& block, const std::uint8_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  std::uint8_t six_bits[8];
  for (int g = 0; g < 8; ++g)
    six_bits[g] = static_cast<std::uint8_t>(parameters.scale_codes[g] + 32);
  pack_fields<4, 1, 4>(six_bits, 0, block.scales_low);
  std::uint8_t high[2];
  pack_fields<2, 1, 2>(six_bits, 4, high);
  block.scales_high = static_cast<std::uint16_t>(high[0] | high[1] << 8);
  pack_fields<4, 16, 128>(codes, 0, block.codes);
}

// Five or four digits to a byte, first digit highest, as a fraction of 256 rounded up.
inline std::uint8_t ternary_byte(const std::uint8_t* codes, int stride, int digits) {
  int number = 0;
  for (int k = 0; k < 5; ++k) number = 3 * number + (k < digits ? codes[k * stride] : 0);
  return static_cast<std::uint8_t>((number * 256 + 242) / 243);
}

inline void pack(tq1_0::Block& block, const std::uint8_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int i = 0; i < 32; ++i) block.digits[i] = ternary_byte(codes + i, 32, 5);
  for (int i = 0; i < 16; ++i) block.digits[32 + i] = ternary_byte(codes + 160 + i, 16, 5);
  for (int i = 0; i < 4; ++i) block.last_digits[i] = ternary_byte(codes + 240 + i, 4, 4);
}

inline void pack(tq2_0::Block& block, const std::uint8_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  pack_fields<2, 32, 64>(codes, 0, block.codes);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
