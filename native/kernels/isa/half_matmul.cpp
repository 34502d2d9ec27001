// SPDX-License-Identifier: Apache-2.0
// Up to 8 tokens are multiplied in floats: there memory sets the pace. More are, where an instruction
// multiplies and adds two words a lane, multiplied as words: 256 columns of a row, and of a token, are
// rounded under a scale of their own (word_scale.h), so that what a token gets does not depend on what
// comes with it:
//
//   y[token][row] += scale[row] * scale[token] * sum_k w'[row][k] x'[token][k]
//
// Numbers as large as the others of their 256 lose 1.4e-4 of themselves (root mean square), as they
// would in F16.
#include "kernels/isa/half_matmul.h"

#include <bit>

#include "formats/all_formats.h"
#include "kernels/isa/f32_matmul.h"
#include "kernels/isa/float_tile.h"
#include "kernels/isa/many_tokens.h"
#include "kernels/isa/word_scale.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

constexpr int kMostFewHalf = 8;
constexpr bool kMultipliesWords = simd::kDotsAnyByte;
constexpr int kPairs = kSegment / 2;

// ---- words ----

// kLanes rows x 256 columns: words of columns 2 i and 2 i + 1 of each row.
struct alignas(64) WordPanel {
  Int words[kPairs];
  Float scale;
};

struct alignas(64) WordTile {
  std::int32_t words[kPairs * kTokenTile];  // [pair][token]
  float scale[kTokenTile];
};

// Of the columns that a word holds.
template <typename Format>
inline Float lower_value(Int word) {
  if constexpr (std::is_same_v<Format, formats::f16>) return simd::half_lanes(word);
  return (Float)(word << 16);
}
template <typename Format>
inline Float upper_value(Int word) {
  if constexpr (std::is_same_v<Format, formats::f16>) {
    return simd::half_lanes(simd::shift_right_logical<16>(word));
  }
  return (Float)(word & simd::broadcast(~0xffff));
}

template <typename FormatType>
struct WordScheme {
  using Format = FormatType;
  using Panel = WordPanel;
  using Input = WordTile;
  static constexpr std::int64_t kTile = kTokenTile;
  static constexpr std::int64_t kChunkTokens = kTokenChunk;
  static constexpr std::int64_t kTogether = kPanelTile;

  static void unpack(const Int* words, int columns, Panel& panel) {
    const auto pairs = static_cast<int>(divide_up(columns, 2));
    Float squares[2] = {simd::zero(), simd::zero()};
    for (int i = 0; i < pairs; ++i) {
      const Float low = lower_value<Format>(words[i]);
      const Float high = upper_value<Format>(words[i]);
      squares[0] = simd::fma(low, low, squares[0]);
      squares[1] = simd::fma(high, high, squares[1]);
    }
    float scales[2][kLanes];
    simd::store(scales[0], squares[0] + squares[1]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const WordScale scale = word_scale(scales[0][lane]);
      scales[0][lane] = scale.to_codes;
      scales[1][lane] = scale.to_values;
    }
    const Float to_codes = simd::load(scales[0]);
    panel.scale = simd::load(scales[1]);
    for (int i = 0; i < pairs; ++i) {
      panel.words[i] =
          simd::two_words(simd::round_to_int(lower_value<Format>(words[i]) * to_codes),
                          simd::round_to_int(upper_value<Format>(words[i]) * to_codes));
    }
  }

  // One token of a tile. Columns past the end are zeros.
  static void put_token(const float* x, int columns, int token, Input& tile) {
    alignas(64) float padded[kSegment];
    if (columns < kSegment) {
      std::copy_n(x, columns, padded);
      std::fill(padded + columns, padded + kSegment, 0.0f);
      x = padded;
    }
    Float squares[2] = {simd::zero(), simd::zero()};
    for (int i = 0; i < kSegment; i += 2 * kLanes) {
      for (int part = 0; part < 2; ++part) {
        const Float value = simd::load(x + i + part * kLanes);
        squares[part] = simd::fma(value, value, squares[part]);
      }
    }
    const WordScale scale = word_scale(simd::sum(squares[0] + squares[1]));
    tile.scale[token] = scale.to_values;
    const Float to_codes = simd::broadcast(scale.to_codes);
    std::int32_t codes[kSegment];
    for (int i = 0; i < kSegment; i += kLanes) {
      simd::store_int(codes + i, simd::round_to_int(simd::load(x + i) * to_codes));
    }
    for (int pair = 0; pair < kPairs; ++pair) {
      const auto upper = static_cast<std::uint32_t>(codes[2 * pair + 1]) << 16;
      tile.words[pair * kTokenTile + token] =
          static_cast<std::int32_t>((static_cast<std::uint32_t>(codes[2 * pair]) & 0xffff) | upper);
    }
  }

  static void multiply(const Panel* panels, int used, const Input& input, Size size, float* sums) {
    const int pairs = static_cast<int>(divide_up(size.columns, 2));
    for (int panel = 0; panel < used; panel += kPanelTile) {
      multiply_tile(panels + panel, input, pairs, sums + panel * kLanes);
    }
  }

 private:
  static void multiply_tile(const Panel* panels, const Input& input, int pairs, float* sums) {
    Int dots[kPanelTile][kTokenTile] = {};
#pragma GCC unroll 2
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokenTile; ++t) {
        const Int x = simd::broadcast(input.words[pair * kTokenTile + t]);
#pragma GCC unroll 2
        for (int r = 0; r < kPanelTile; ++r) {
          dots[r][t] = simd::dot_words(dots[r][t], panels[r].words[pair], x);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokenTile; ++t) {
      const Float scale = simd::broadcast(input.scale[t]);
#pragma GCC unroll 2
      for (int r = 0; r < kPanelTile; ++r) {
        float* sum = sums + t * kRowBlock + r * kLanes;
        const Float share = simd::to_float(dots[r][t]) * panels[r].scale;
        simd::store(sum, simd::fma(share, scale, simd::load(sum)));
      }
    }
  }
};

// ---- floats, rows as lanes ----

template <typename FormatType>
struct FloatScheme {
  using Format = FormatType;
  using Panel = FloatPanel;
  struct Input {
    float values[kSegment * kTokenTile];  // [column][token]
  };
  static constexpr std::int64_t kTile = kTokenTile;
  static constexpr std::int64_t kChunkTokens = kTokenChunk;
  static constexpr std::int64_t kTogether = kPanelTile;

  static void unpack(const Int* words, int columns, Panel& panel) {
    for (int i = 0; 2 * i < columns; ++i) {
      panel.values[2 * i] = lower_value<Format>(words[i]);
      panel.values[2 * i + 1] = upper_value<Format>(words[i]);
    }
  }
  static void put_token(const float* x, int columns, int token, Input& tile) {
    for (int i = 0; i < kSegment; ++i) {
      tile.values[i * kTokenTile + token] = i < columns ? x[i] : 0.0f;
    }
  }
  static void multiply(const Panel* panels, int used, const Input& input, Size size, float* sums) {
    for (int panel = 0; panel < used; panel += kPanelTile) {
      multiply_tile<kPanelTile>(panels + panel, input.values, size.columns, sums + panel * kLanes);
    }
  }
};

template <typename Format>
using ManyScheme = std::conditional_t<kMultipliesWords, WordScheme<Format>, FloatScheme<Format>>;
using ManyInput = ManyScheme<formats::f16>::Input;

// Tokens [token_begin, token_end), and those that fill up the last tile as zeros.
void prepare_many(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, ManyInput* tiles) {
  const TileOrder order = order_of_many(tokens, kTokenTile);
  const std::int64_t end = token_end < tokens ? token_end : round_up(tokens, kTokenTile);
  for (std::int64_t token = token_begin; token < end; ++token) {
    for (std::int64_t segment = 0; segment < segments_of(columns); ++segment) {
      const bool is_there = token < tokens;
      ManyScheme<formats::f16>::put_token(is_there ? x + token * x_stride + segment * kSegment : x,
                                          is_there ? segment_columns(columns, segment) : 0,
                                          static_cast<int>(token % kTokenTile),
                                          tiles[order.of(token / kTokenTile, segment)]);
    }
  }
}

// Up to `tile` tokens times interleaved rows; x: [tile][padded columns].
template <typename Format, int tile>
void multiply_few(const Product& product, std::int64_t row_begin, std::int64_t row_end) {
  // Sums of lower and upper columns, of one token of two words: independent of each other.
  constexpr int kTogether = tile == 1 ? 2 : 1;
  const Weight& weight = product.weight;
  const auto* x = reinterpret_cast<const float*>(product.prepared);
  const std::int64_t stride = padded_columns(weight.columns);
  const std::int64_t pairs = divide_up(weight.columns, 2);
  for (std::int64_t row = row_begin; row < row_end; row += kLanes) {
    const auto* words = reinterpret_cast<const Int*>(weight.blocks + row * weight.row_bytes);
    Float sums[tile][2 * kTogether];
    for (auto& chains : sums) std::fill_n(chains, 2 * kTogether, simd::zero());
    const auto add = [&](std::int64_t pair, int chain) {
      const Float low = lower_value<Format>(words[pair]);
      const Float high = upper_value<Format>(words[pair]);
#pragma GCC unroll 8
      for (int t = 0; t < tile; ++t) {
        const float* at = x + t * stride + 2 * pair;
        sums[t][chain] = simd::fma(low, simd::broadcast(at[0]), sums[t][chain]);
        sums[t][chain + 1] = simd::fma(high, simd::broadcast(at[1]), sums[t][chain + 1]);
      }
    };
    std::int64_t pair = 0;
    for (; pair + kTogether <= pairs; pair += kTogether) {
#pragma GCC unroll 2
      for (int i = 0; i < kTogether; ++i) add(pair + i, 2 * i);
    }
    for (; pair < pairs; ++pair) add(pair, 0);
    const std::int64_t count = std::min<std::int64_t>(kLanes, row_end - row);
    for (int t = 0; t < std::min<std::int64_t>(tile, product.tokens); ++t) {
      Float total = sums[t][0] + sums[t][1];
      if constexpr (kTogether == 2) total += sums[t][2] + sums[t][3];
      float lanes[kLanes];
      simd::store(lanes, total);
      std::copy_n(lanes, count, product.y + t * product.y_stride + row);
    }
  }
}

// ---- the table ----

// Rows of the tile that holds so few tokens: 1, 2, 4 or kMostFewHalf.
std::int64_t tile_of_few(std::int64_t tokens) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(tokens)));
}
// Calls run<tile>() with it.
template <typename Run>
void with_few(std::int64_t tokens, Run run) {
  const std::int64_t tile = tile_of_few(tokens);
  if (tile == 1) return run.template operator()<1>();
  if (tile == 2) return run.template operator()<2>();
  if (tile == 4) return run.template operator()<4>();
  run.template operator()<kMostFewHalf>();
}

template <bool is_interleaved>
std::size_t half_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  if (tokens > kMostFewHalf) {
    return static_cast<std::size_t>(divide_up(tokens, kTokenTile) * segments_of(columns)) *
           sizeof(ManyInput);
  }
  if (!is_interleaved) return f32_prepared_bytes(tokens, columns);
  return static_cast<std::size_t>(tile_of_few(tokens) * padded_columns(columns)) * sizeof(float);
}

template <bool is_interleaved>
void half_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  if (tokens > kMostFewHalf) {
    prepare_many(x, x_stride, tokens, columns, token_begin, token_end,
                 reinterpret_cast<ManyInput*>(prepared));
    return;
  }
  if (!is_interleaved) {
    f32_prepare(x, x_stride, tokens, columns, token_begin, token_end, prepared);
    return;
  }
  const std::int64_t padded = padded_columns(columns);
  auto* rows = reinterpret_cast<float*>(prepared);
  const std::int64_t end = token_end < tokens ? token_end : tile_of_few(tokens);
  for (std::int64_t token = token_begin; token < end; ++token) {
    float* row = rows + token * padded;
    const std::int64_t there = token < tokens ? columns : 0;
    std::copy_n(x + (there > 0 ? token * x_stride : 0), there, row);
    std::fill(row + there, row + padded, 0.0f);
  }
}

template <typename Format, bool is_interleaved>
void half_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (tokens > kMostFewHalf) {
    multiply_many<ManyScheme<Format>>(product, row_begin, row_end, scratch);
  } else if constexpr (is_interleaved) {
    with_few(tokens, [&]<int tile>() { multiply_few<Format, tile>(product, row_begin, row_end); });
  } else {
    f32_multiply(weight, prepared, tokens, y, y_stride, row_begin, row_end, scratch);
  }
}

std::size_t half_scratch_bytes(std::int64_t columns, std::int64_t tokens) {
  if (tokens <= kMostFewHalf) return f32_scratch_bytes(columns, tokens);
  return many_scratch_bytes<ManyScheme<formats::f16>>(tokens);
}

template <typename Format, bool is_interleaved>
constexpr MatmulKernel kKernel = {InputLayout::halves,
                                  half_prepared_bytes<is_interleaved>,
                                  half_prepare<is_interleaved>,
                                  half_multiply<Format, is_interleaved>,
                                  kTokenTile,
                                  kRowBlock,
                                  half_scratch_bytes,
                                  is_interleaved ? interleaved_row_bytes<Format> : nullptr,
                                  is_interleaved ? interleave<Format> : nullptr};

template <typename Format>
const MatmulKernel* kernel_of(bool is_interleaved) {
  if (is_interleaved) return &kKernel<Format, true>;
  // As they are stored, rows have a kernel of floats already.
  if constexpr (kMultipliesWords) return &kKernel<Format, false>;
  return nullptr;
}

}  // namespace

const MatmulKernel* half_kernel(formats::FormatId format, bool is_interleaved) {
  if (format == formats::FormatId::f16) return kernel_of<formats::f16>(is_interleaved);
  if (format == formats::FormatId::bf16) return kernel_of<formats::bf16>(is_interleaved);
  return nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
