// SPDX-License-Identifier: Apache-2.0
// Inputs of integer linear layers as the tiles of the product read them.
#pragma once

#include "kernels/integer_matmul.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

using simd::Float;
using simd::Int;
using simd::kLanes;

// Tokens of a tile: with two vectors of rows their sums fill the registers.
inline constexpr int kInputTile = simd::kRegisters == 32 ? 12 : 4;

// Quads whose codes lie together for each token of a tile: 64 bytes.
inline constexpr std::int64_t kQuadBlock = 16;

// What lies where in prepared input. Codes: [tile][block of quads][token][quad], four codes of a
// token in each, less simd::kInputBias. Scales, zero points and sums of codes, both less it too:
// [tile][group][token].
struct PreparedInput {
  std::int64_t quads;
  std::int64_t groups;
  std::int64_t tile_words;  // of codes
  std::uint32_t* codes;
  float* scale;
  std::int32_t* zero_point;
  std::int32_t* sums;

  PreparedInput(std::uint8_t* bytes, std::int64_t tokens, std::int64_t columns,
                std::int64_t n_groups)
      : quads((columns + 3) / 4),
        groups(n_groups),
        tile_words((quads + kQuadBlock - 1) / kQuadBlock * kQuadBlock * kInputTile) {
    const std::int64_t tiles = (tokens + kInputTile - 1) / kInputTile;
    codes = reinterpret_cast<std::uint32_t*>(bytes);
    scale = reinterpret_cast<float*>(codes + tiles * tile_words);
    zero_point = reinterpret_cast<std::int32_t*>(scale + tiles * groups * kInputTile);
    sums = zero_point + tiles * groups * kInputTile;
  }
};

std::size_t integer_prepared_bytes(std::int64_t tokens, std::int64_t columns, std::int64_t groups);
void integer_prepare(const Activations& x, const IntegerInput& input, std::int64_t groups,
                     std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);

}  // namespace lilliput::kernels::LILLIPUT_ISA
