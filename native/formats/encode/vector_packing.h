// SPDX-License-Identifier: Apache-2.0
// Codes of vectors and parameters of one block -> its stored bytes; the inverse of each codebook
// format's `decode`. Layouts: src/lilliput/formats/<name>.py.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/encode/block_packing.h"

namespace lilliput::formats {
inline namespace LILLIPUT_ISA {

// Nibble g of the bytes = scale code of group g.
inline void pack_scale_nibbles(const BlockParameters& parameters, int groups, std::uint8_t* bytes) {
  for (int g = 0; g < groups; g += 2) {
    bytes[g / 2] =
        static_cast<std::uint8_t>(parameters.scale_codes[g] | parameters.scale_codes[g + 1] << 4);
  }
}

// Four 7-bit sign masks and a scale code.
inline std::uint32_t mask_word(const std::int32_t* codes, int shift, int scale_code) {
  std::uint32_t word = static_cast<std::uint32_t>(scale_code) << 28;
  for (int j = 0; j < 4; ++j) word |= static_cast<std::uint32_t>(codes[j] >> shift) << (7 * j);
  return word;
}

inline void pack(iq3_s::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  std::memset(block.indices_high, 0, sizeof(block.indices_high));
  std::memset(block.signs, 0, sizeof(block.signs));
  for (int i = 0; i < 64; ++i) {
    block.indices_low[i] = static_cast<std::uint8_t>(codes[i] & 255);
    block.indices_high[i / 8] |= static_cast<std::uint8_t>((codes[i] >> 8 & 1) << (i % 8));
    block.signs[i / 2] |= static_cast<std::uint8_t>((codes[i] >> 9) << (4 * (i % 2)));
  }
  pack_scale_nibbles(parameters, 8, block.scale_codes);
}

inline void pack(iq3_xxs::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int i = 0; i < 32; ++i) {
    block.indices[2 * i] = static_cast<std::uint8_t>(codes[i] & 255);
    block.indices[2 * i + 1] = static_cast<std::uint8_t>(codes[i] >> 8 & 255);
  }
  for (int g = 0; g < 8; ++g)
    block.signs[g] = mask_word(codes + 4 * g, 16, parameters.scale_codes[g]);
}

inline void pack(iq2_s::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  std::memset(block.indices_high, 0, sizeof(block.indices_high));
  for (int i = 0; i < 32; ++i) {
    block.indices_low[i] = static_cast<std::uint8_t>(codes[i] & 255);
    block.signs[i] = static_cast<std::uint8_t>(codes[i] >> 10);
    block.indices_high[i / 4] |= static_cast<std::uint8_t>((codes[i] >> 8 & 3) << (2 * (i % 4)));
  }
  pack_scale_nibbles(parameters, 16, block.scale_codes);
}

inline void pack(iq2_xs::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int i = 0; i < 32; ++i) block.codes[i] = static_cast<std::uint16_t>(codes[i]);
  pack_scale_nibbles(parameters, 16, block.scale_codes);
}

inline void pack(iq2_xxs::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int g = 0; g < 8; ++g) {
    std::uint32_t indices = 0;
    for (int j = 0; j < 4; ++j)
      indices |= static_cast<std::uint32_t>(codes[4 * g + j] & 255) << (8 * j);
    block.words[2 * g] = indices;
    block.words[2 * g + 1] = mask_word(codes + 4 * g, 8, parameters.scale_codes[g]);
  }
}

// minimum_codes: the groups' shifts.
inline void pack(iq1_s::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  block.scale = parameters.scale;
  for (int i = 0; i < 32; ++i) block.indices_low[i] = static_cast<std::uint8_t>(codes[i] & 255);
  for (int g = 0; g < 8; ++g) {
    int word = parameters.scale_codes[g] << 12 | parameters.minimum_codes[g] << 15;
    for (int j = 0; j < 4; ++j) word |= codes[4 * g + j] >> 8 << (3 * j);
    block.groups[g] = static_cast<std::uint16_t>(word);
  }
}

inline void pack(iq1_m::Block& block, const std::int32_t* codes,
                 const BlockParameters& parameters) {
  for (int i = 0; i < 32; ++i) block.indices_low[i] = static_cast<std::uint8_t>(codes[i] & 255);
  for (int i = 0; i < 16; ++i) {
    block.indices_high[i] =
        static_cast<std::uint8_t>(codes[2 * i] >> 8 | codes[2 * i + 1] >> 8 << 4);
  }
  for (int part = 0; part < 4; ++part) {
    int word = (parameters.scale >> (4 * part) & 15) << 12;
    for (int g = 0; g < 4; ++g) word |= parameters.scale_codes[4 * part + g] << (3 * g);
    block.scales[part] = static_cast<std::uint16_t>(word);
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput::formats
