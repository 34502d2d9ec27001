// SPDX-License-Identifier: Apache-2.0
// Quantizes activations into the tiles of scaled_input.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/isa/int8_input.h"
#include "kernels/isa/scaled_quantize.h"

namespace lilliput::kernels::LILLIPUT_ISA {

inline std::int32_t two_words(std::int32_t low, std::int32_t high) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(low) & 0xffff) |
                                   static_cast<std::uint32_t>(high) << 16);
}

// ---- a token at a time, as codes are unpacked ----

template <ScaledGrid grid, int tile>
void put_codes(const Quantized& from, int token,
               ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  for (int quad = 0; quad < kSegment / 4; ++quad) {
    std::memcpy(&to.codes[quad * tile + token], from.codes + 4 * quad, 4);
  }
}

// Bits to drop of a magnitude for it to fit a word; half a step is kept free for rounding up.
inline int shift_to_word(std::int32_t magnitude) {
  int shift = 0;
  while (magnitude >> shift >= kLargestWord) ++shift;
  return shift;
}

template <int tile>
void put_sums(const Quantized& from, int token, ScaledTile<32, tile>& to) {
  std::int32_t sums[8];
  std::int32_t largest = 0;
  for (int group = 0; group < 8; ++group) {
    sums[group] = from.scale_codes[group] * (from.sum16[2 * group] + from.sum16[2 * group + 1]);
    largest = std::max(largest, std::abs(sums[group]));
  }
  const int shift = shift_to_word(largest);
  const std::int32_t half = shift == 0 ? 0 : 1 << (shift - 1);
  for (int pair = 0; pair < 4; ++pair) {
    to.sums[pair * tile + token] =
        two_words((sums[2 * pair] + half) >> shift, (sums[2 * pair + 1] + half) >> shift);
  }
  to.sum_shift[token] = shift;
}

template <int tile>
void put_sums(const Quantized& from, int token, ScaledTile<16, tile>& to) {
  float largest = 0.0f;
  for (int group = 0; group < 16; ++group) {
    const float sum = from.scale[group / 2] * static_cast<float>(from.sum16[group]);
    largest = std::max(largest, std::abs(sum));
  }
  const float scale = largest / static_cast<float>(kLargestWord);
  const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
  for (int pair = 0; pair < 8; ++pair) {
    std::int32_t words[2];
    for (int i = 0; i < 2; ++i) {
      const float sum = from.scale[pair] * static_cast<float>(from.sum16[2 * pair + i]);
      words[i] =
          static_cast<std::int32_t>(std::nearbyint(std::isfinite(sum) ? sum * inverse : 0.0f));
    }
    to.sums[pair * tile + token] = two_words(words[0], words[1]);
  }
  to.sum_scale[token] = scale;
}

// Where the dots of each group start.
template <ScaledGrid grid, int tile>
void put_starts(const Quantized& from, int token,
                ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  constexpr int kParts = grid.group_size / 16;
  for (int group = 0; group < kSegment / grid.group_size; ++group) {
    std::int32_t sum = 0;
    for (int i = 0; i < kParts; ++i) sum += from.sum16[kParts * group + i];
    std::int32_t& start = to.starts[group * tile + token];
    start = kHalfOfDropped<grid> - grid.zero_point * sum;
    if constexpr (simd::kPartsOfDots == 2) {
      // Of either word what its columns need, or it might not fit.
      std::int32_t upper = 0;
      for (int i = 2; i < 16; i += 4)
        upper += from.codes[16 * group + i] + from.codes[16 * group + i + 1];
      upper *= -grid.zero_point;
      start = two_words(start - upper, upper);
    }
  }
}

template <ScaledGrid grid, int tile>
void put(const Quantized& from, int token,
         ScaledTile<grid.group_size, tile, kHasStarts<grid>>& to) {
  put_codes<grid, tile>(from, token, to);
  if constexpr (kHasStarts<grid>) put_starts<grid, tile>(from, token, to);
  if constexpr (grid.has_minimum) put_sums(from, token, to);
  if constexpr (grid.group_size == 32) {
    to.scale[token] = from.step * kLostFactor<grid>;
    for (int group = 0; group < 8; ++group) {
      const std::int32_t code = from.scale_codes[group];
      to.scale_codes[group * tile + token] = simd::kPartsOfDots == 2 ? two_words(code, code) : code;
    }
  } else {
    for (int i = 0; i < 4; ++i) to.scale[i * tile + token] = from.scale[2 * i];
  }
}

// ---- a tile of many tokens at a time, with two groups side by side ----

// Two numbers for each token, as lanes or in memory: [token][group % 2].
struct alignas(64) TokenPairs {
  std::int32_t numbers[2 * kScaledTile];

  void set(int token, std::int32_t number) { numbers[2 * token] = numbers[2 * token + 1] = number; }
  std::int32_t larger(int token) const {
    return std::max(numbers[2 * token], numbers[2 * token + 1]);
  }
};

// The lower words of two groups' numbers, a word pair for each token.
inline void store_words(Int first, Int second, std::int32_t* to_first, std::int32_t* to_second) {
  TokenPairs words;
  simd::store_int(words.numbers, simd::pack_words(first, second));
  for (int token = 0; token < kScaledTile; token += 2) {
    std::memcpy(to_first + token, words.numbers + 2 * token, 8);
    std::memcpy(to_second + token, words.numbers + 2 * token + 2, 8);
  }
}

// Sums of the codes of each pair of groups, by which minimums are multiplied.
template <ScaledGrid grid, typename Tile>
void put_sums(const Quantized (&from)[kScaledTile], const Int* sums, Tile& to) {
  constexpr int kPairs = kSegment / grid.group_size / 2;
  Int words[kPairs];
  TokenPairs found;
  if constexpr (grid.group_size == 32) {
    Int largest = {};
    for (int pair = 0; pair < kPairs; ++pair) {
      TokenPairs codes;
      for (int token = 0; token < kScaledTile; ++token) {
        std::memcpy(codes.numbers + 2 * token, from[token].scale_codes + 2 * pair, 8);
      }
      words[pair] = sums[pair] * simd::load_int(codes.numbers);
      const Int magnitude = words[pair] < 0 ? -words[pair] : words[pair];
      largest = largest > magnitude ? largest : magnitude;
    }
    simd::store_int(found.numbers, largest);
    for (int token = 0; token < kScaledTile; ++token) {
      to.sum_shift[token] = shift_to_word(found.larger(token));
      found.set(token, to.sum_shift[token]);
    }
    const Int shift = simd::load_int(found.numbers);
    const Int half = (simd::broadcast(1) << shift) >> 1;
    for (Int& word : words) word = (word + half) >> shift;
  } else {
    Float values[kPairs];
    Float largest = simd::zero();
    for (int pair = 0; pair < kPairs; ++pair) {
      for (int token = 0; token < kScaledTile; ++token) {
        found.set(token, std::bit_cast<std::int32_t>(from[token].scale[pair]));
      }
      values[pair] = simd::to_float(sums[pair]) * (Float)simd::load_int(found.numbers);
      largest = simd::max(largest, simd::absolute(values[pair]));
    }
    simd::store_int(found.numbers, (Int)largest);
    for (int token = 0; token < kScaledTile; ++token) {
      // Magnitudes of floats are ordered as integers are.
      const float scale =
          std::bit_cast<float>(found.larger(token)) / static_cast<float>(kLargestWord);
      const float inverse = scale > kSmallestScale ? 1.0f / scale : 0.0f;
      to.sum_scale[token] = scale;
      found.set(token, std::bit_cast<std::int32_t>(inverse));
    }
    const auto inverse = (Float)simd::load_int(found.numbers);
    for (int pair = 0; pair < kPairs; ++pair) {
      words[pair] = simd::round_to_int(values[pair] * inverse);
    }
  }
  for (int pair = 0; pair < kPairs; pair += 2) {
    std::int32_t* to_pair = to.sums + pair * kScaledTile;
    store_words(words[pair], words[pair + 1], to_pair, to_pair + kScaledTile);
  }
}

// Where the dots of each group start, or of 64 folded columns.
template <ScaledGrid grid, Arrangement arrangement, typename Tile>
void put_starts(const Int* sums, Tile& to) {
  if constexpr (arrangement == Arrangement::folded) {
    for (int part = 0; part < kSegment / kExactColumns; ++part) {
      TokenPairs whole;
      simd::store_int(whole.numbers, sums[2 * part] + sums[2 * part + 1]);
      for (int token = 0; token < kScaledTile; ++token) {
        const std::int32_t sum = whole.numbers[2 * token] + whole.numbers[2 * token + 1];
        to.starts[part * kScaledTile + token] = grid.least_product * sum;
      }
    }
  } else {
    for (int pair = 0; pair < kSegment / grid.group_size / 2; ++pair) {
      simd::store_int(to.starts + 2 * pair * kScaledTile,
                      simd::broadcast(kHalfOfDropped<grid>) - sums[pair] * grid.zero_point);
    }
  }
}

// Codes are transposed a square of vectors at a time; sums of groups come by the way.
template <ScaledGrid grid, Arrangement arrangement>
void put_tile(const Quantized (&from)[kScaledTile],
              ScaledTile<grid.group_size, kScaledTile, kHasStarts<grid>>& to) {
  static_assert(arrangement == Arrangement::plain || 2 * kScaledTile == kLanes);
  constexpr int kQuads = grid.group_size / 4;
  const Int one_bytes = simd::broadcast(0x01010101);
  Int sums[kSegment / grid.group_size / 2] = {};
  // Quads of two groups at a time, of which 64 columns lie in a row, twice.
  for (int first = 0; first < kSegment / 8; first += kLanes) {
    Int lines[kLanes];
    for (int token = 0; token < kScaledTile; ++token) {
      const std::int8_t* codes = from[token].codes + first / 16 * (kSegment / 2) + first % 16 * 4;
      lines[2 * token] = simd::load_int(codes);
      lines[2 * token + 1] = simd::load_int(codes + kSegment / 4);
    }
    simd::transpose(lines);
    for (int i = 0; i < kLanes; ++i) {
      const int line = first + i;
      simd::store_int(to.codes + kLanes * line, lines[i]);
      Int& sum = sums[line / kQuads];
      sum = simd::dot_unsigned(sum, one_bytes, lines[i]);
    }
  }
  if constexpr (kHasStarts<grid>) put_starts<grid, arrangement>(sums, to);
  if constexpr (grid.has_minimum) put_sums<grid>(from, sums, to);
  for (int token = 0; token < kScaledTile; ++token) {
    const Quantized& row = from[token];
    if constexpr (grid.group_size == 32) {
      to.scale[token] = row.step * kLostFactor<grid>;
      for (int pair = 0; pair < 4; ++pair) {
        to.scale_codes[pair * kScaledTile + token] =
            two_words(row.scale_codes[2 * pair], row.scale_codes[2 * pair + 1]);
      }
    } else {
      for (int i = 0; i < 4; ++i) to.scale[i * kScaledTile + token] = row.scale[2 * i];
    }
  }
}

// Weights as they are stored take few tokens as formats with float scales do.
template <ScaledGrid grid, bool is_interleaved>
std::size_t scaled_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  if (!is_interleaved && tokens <= kFewTokens) return int8_prepared_bytes<false>(tokens, columns);
  return with_tile(tokens, [=]<int tile>() {
    return static_cast<std::size_t>(divide_up(tokens, tile) * segments_of(columns)) *
           sizeof(ScaledTile<grid.group_size, tile, kHasStarts<grid>>);
  });
}

// x: rows of a matrix, of which those past `tokens` count as zeros.
struct Rows {
  const float* x;
  std::int64_t stride;
  std::int64_t tokens;
  std::int64_t columns;

  template <ScaledGrid grid, bool in_pairs>
  void quantize_segment(std::int64_t token, std::int64_t segment, Quantized& result) const {
    if (token >= tokens) {
      result = {};
      return;
    }
    quantize<grid, in_pairs>(x + token * stride + segment * kSegment,
                             segment_columns(columns, segment), result);
  }
};

template <ScaledGrid grid, int tile>
void prepare_few(const Rows& rows, std::int64_t token_begin, std::int64_t token_end,
                 TileOrder order, ScaledTile<grid.group_size, tile, kHasStarts<grid>>* tiles) {
  for (std::int64_t token = token_begin; token < token_end; ++token) {
    for (std::int64_t segment = 0; segment < segments_of(rows.columns); ++segment) {
      Quantized quantized;
      rows.quantize_segment<grid, false>(token, segment, quantized);
      put<grid, tile>(quantized, static_cast<int>(token % tile),
                      tiles[order.of(token / tile, segment)]);
    }
  }
}

template <ScaledGrid grid, Arrangement arrangement>
void prepare_tiles(const Rows& rows, std::int64_t token_begin, std::int64_t token_end,
                   TileOrder order,
                   ScaledTile<grid.group_size, kScaledTile, kHasStarts<grid>>* tiles) {
  for (std::int64_t token = token_begin; token < token_end; token += kScaledTile) {
    for (std::int64_t segment = 0; segment < segments_of(rows.columns); ++segment) {
      Quantized quantized[kScaledTile];
      for (int i = 0; i < kScaledTile; ++i) {
        rows.quantize_segment<grid, true>(token + i, segment, quantized[i]);
      }
      put_tile<grid, arrangement>(quantized, tiles[order.of(token / kScaledTile, segment)]);
    }
  }
}

template <ScaledGrid grid, bool is_interleaved>
void scaled_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens,
                    std::int64_t columns, std::int64_t token_begin, std::int64_t token_end,
                    std::uint8_t* prepared) {
  if (!is_interleaved && tokens <= kFewTokens) {
    int8_prepare<false>(x, x_stride, tokens, columns, token_begin, token_end, prepared);
    return;
  }
  const Rows rows{x, x_stride, tokens, columns};
  constexpr Arrangement kArrangement = arrangement_of<grid>(kMostFewScaled + 1);
  with_tile(tokens, [=]<int tile>() {
    auto* tiles = reinterpret_cast<ScaledTile<grid.group_size, tile, kHasStarts<grid>>*>(prepared);
    // Tokens that fill up the last tile are zeros.
    const std::int64_t end = token_end < tokens ? token_end : round_up(tokens, tile);
    if (tokens <= kMostFewScaled) {
      prepare_few<grid, tile>(rows, token_begin, end, order_of_few(columns), tiles);
    } else if constexpr (kArrangement == Arrangement::plain) {
      prepare_few<grid, tile>(rows, token_begin, end, order_of_many(tokens, tile), tiles);
    } else if constexpr (tile == kScaledTile) {
      prepare_tiles<grid, kArrangement>(rows, token_begin, end, order_of_many(tokens, tile), tiles);
    }
  });
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
