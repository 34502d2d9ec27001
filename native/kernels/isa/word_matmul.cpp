// SPDX-License-Identifier: Apache-2.0
// An instruction multiplies two words a lane where it multiplies one float. 256 columns of a row, and
// of a token, are rounded under a scale of their own (word_scale.h), so that what a token gets does not
// depend on what comes with it:
//
//   y[token][row] += scale[row] * scale[token] * sum_k w'[row][k] x'[token][k]
//
// Numbers as large as the others of their 256 lose 1.4e-4 of themselves (root mean square), as they
// would in F16. Few tokens are multiplied in floats: there memory sets the pace.
#include "kernels/isa/word_matmul.h"

#include "formats/all_formats.h"
#include "kernels/isa/f32_matmul.h"
#include "kernels/isa/many_tokens.h"
#include "kernels/isa/word_scale.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

constexpr std::int64_t kMostFloatTokens = 8;
constexpr int kPairs = kSegment / 2;

// kLanes rows x 256 columns: words of columns 2 i and 2 i + 1 of each row.
struct alignas(64) WordPanel {
  Int words[kPairs];
  Float scale;
};

struct alignas(64) WordTile {
  std::int32_t words[kPairs * kTokenTile];  // [pair][token]
  float scale[kTokenTile];
};

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

  static void unpack(const Int* words, Panel& panel) {
    Float squares[2] = {simd::zero(), simd::zero()};
    for (int i = 0; i < kPairs; ++i) {
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
    for (int i = 0; i < kPairs; ++i) {
      panel.words[i] =
          simd::two_words(simd::round_to_int(lower_value<Format>(words[i]) * to_codes),
                          simd::round_to_int(upper_value<Format>(words[i]) * to_codes));
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

// One token of a tile. Columns past the end are zeros.
void put_token(const float* x, int columns, int token, WordTile& tile) {
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

std::size_t word_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  if (tokens <= kMostFloatTokens) return f32_prepared_bytes(tokens, columns);
  return static_cast<std::size_t>(divide_up(tokens, kTokenTile) * segments_of(columns)) *
         sizeof(WordTile);
}

void word_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  if (tokens <= kMostFloatTokens) {
    f32_prepare(x, x_stride, tokens, columns, token_begin, token_end, prepared);
    return;
  }
  auto* tiles = reinterpret_cast<WordTile*>(prepared);
  const TileOrder order = order_of_many(tokens, kTokenTile);
  for (std::int64_t token = token_begin; token < token_end; ++token) {
    for (std::int64_t segment = 0; segment < segments_of(columns); ++segment) {
      WordTile& tile = tiles[order.of(token / kTokenTile, segment)];
      // Tokens that fill up the last tile are zeros.
      if (token == tokens - 1 && tokens % kTokenTile != 0) {
        for (std::int64_t t = token + 1; t % kTokenTile != 0; ++t) {
          put_token(x, 0, static_cast<int>(t % kTokenTile), tile);
        }
      }
      put_token(x + token * x_stride + segment * kSegment, segment_columns(columns, segment),
                static_cast<int>(token % kTokenTile), tile);
    }
  }
}

template <typename Format>
void word_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  if (tokens <= kMostFloatTokens) {
    f32_multiply(weight, prepared, tokens, y, y_stride, row_begin, row_end, scratch);
    return;
  }
  multiply_many<WordScheme<Format>>({weight, prepared, tokens, y, y_stride}, row_begin, row_end,
                                    scratch);
}

std::size_t word_scratch_bytes(std::int64_t columns, std::int64_t tokens) {
  if (tokens <= kMostFloatTokens) return f32_scratch_bytes(columns, tokens);
  return many_scratch_bytes<WordScheme<formats::f16>>(tokens);
}

template <typename Format>
constexpr MatmulKernel kKernel = {InputLayout::words,    word_prepared_bytes, word_prepare,
                                  word_multiply<Format>, kTokenTile,          kRowBlock,
                                  word_scratch_bytes};

}  // namespace

const MatmulKernel* word_kernel(formats::FormatId format) {
  // Elsewhere two instructions multiply and add words.
  if constexpr (simd::kDotsAnyByte) {
    if (format == formats::FormatId::f16) return &kKernel<formats::f16>;
    if (format == formats::FormatId::bf16) return &kKernel<formats::bf16>;
  }
  return nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
