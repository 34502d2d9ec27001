// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/f32_matmul.h"

#include <type_traits>

#include "formats/all_formats.h"
#include "kernels/isa/blocks.h"
#include "kernels/isa/float_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Prepared input: rows padded with zeros to whole segments. Few tokens: [token][column]. Many:
// [tile][column][token].

// Writes the 256 values of segment `index` of a row.
using DecodeSegment = void (*)(const Weight& weight, std::int64_t row, std::int64_t index,
                               float* values);

template <typename Format>
void decode_segment(const Weight& weight, std::int64_t row, std::int64_t index, float* values) {
  PaddedSegment<Format> padded;
  const auto* blocks = segment_blocks<Format>(weight, row, index, padded);
  for (std::int64_t i = 0; i < kSegment / Format::block_size; ++i) {
    Format::decode(blocks[i], values + i * Format::block_size);
  }
}

// A segment's weights, converted as they are loaded: F32, F16 and BF16.
template <typename Format>
class LoadedValues {
 public:
  LoadedValues(const Weight& weight, std::int64_t row, std::int64_t index, DecodeSegment)
      : blocks_(segment_blocks<Format>(weight, row, index, padded_)) {}
  Float load(int column) const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(blocks_ + column);
    if constexpr (std::is_same_v<Format, formats::f16>) return simd::load_half(bytes);
    if constexpr (std::is_same_v<Format, formats::bf16>) return simd::load_bfloat16(bytes);
    if constexpr (std::is_same_v<Format, formats::f32>) return (Float)simd::load_int(bytes);
  }

 private:
  PaddedSegment<Format> padded_;
  const typename Format::Block* blocks_;
};

// A segment's weights, decoded first: every other format.
class DecodedValues {
 public:
  DecodedValues(const Weight& weight, std::int64_t row, std::int64_t index, DecodeSegment decode) {
    decode(weight, row, index, values_);
  }
  Float load(int column) const { return simd::load(values_ + column); }

 private:
  alignas(64) float values_[kSegment];
};

// ---- few tokens ----

// Where results go: y[token][row] for the rows [row_begin, row_end).
struct Output {
  float* y;
  std::int64_t y_stride;
  std::int64_t row_begin;
  std::int64_t row_end;
};

template <typename Values, int n_tokens>
void multiply_rows(const Weight& weight, const float* x, const Output& output,
                   DecodeSegment decode) {
  // Independent sums hide the latency of the multiply-add.
  constexpr int kChains = n_tokens == 1 ? 4 : 2;
  const std::int64_t x_stride = padded_columns(weight.columns);
  for (std::int64_t row = output.row_begin; row < output.row_end; ++row) {
    Float sums[n_tokens][kChains];
    for (auto& chains : sums) std::fill_n(chains, kChains, simd::zero());
    for (std::int64_t index = 0; index < segments_of(weight.columns); ++index) {
      const Values values(weight, row, index, decode);
      const int columns = segment_columns(weight.columns, index);
      const float* input = x + index * kSegment;
      for (int column = 0; column < columns; column += kChains * kLanes) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain) {
          const Float weights = values.load(column + chain * kLanes);
#pragma GCC unroll 4
          for (int t = 0; t < n_tokens; ++t) {
            const float* p = input + t * x_stride + column + chain * kLanes;
            sums[t][chain] = simd::fma(weights, simd::load(p), sums[t][chain]);
          }
        }
      }
    }
    for (int t = 0; t < n_tokens; ++t) {
      Float total = sums[t][0];
      for (int chain = 1; chain < kChains; ++chain) total += sums[t][chain];
      output.y[t * output.y_stride + row] = simd::sum(total);
    }
  }
}

// ---- many tokens ----

// Rows past the end repeat the last one.
template <typename Values>
void unpack_panel(const Weight& weight, std::int64_t row, std::int64_t row_end, std::int64_t index,
                  DecodeSegment decode, FloatPanel& panel) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Values values(weight, std::min(row + lane, row_end - 1), index, decode);
#pragma GCC unroll 4
    for (int i = 0; i < kSegment / kLanes; ++i) {
      panel.values[i * kLanes + lane] = values.load(i * kLanes);
    }
  }
  for (int i = 0; i < kSegment; i += kLanes) {
    Int square[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = (Int)panel.values[i + lane];
    simd::transpose(square);
    for (int lane = 0; lane < kLanes; ++lane) panel.values[i + lane] = (Float)square[lane];
  }
}

// ---- the table ----

struct Functions {
  DecodeSegment decode;
  void (*multiply_rows[kFewTokens])(const Weight& weight, const float* x, const Output& output,
                                    DecodeSegment decode);
  void (*unpack_panel)(const Weight& weight, std::int64_t row, std::int64_t row_end,
                       std::int64_t index, DecodeSegment decode, FloatPanel& panel);
};

template <typename Format>
constexpr Functions functions_of() {
  using Values = std::conditional_t<Format::block_size == 1, LoadedValues<Format>, DecodedValues>;
  return {&decode_segment<Format>,
          {&multiply_rows<Values, 1>, &multiply_rows<Values, 2>, &multiply_rows<Values, 3>,
           &multiply_rows<Values, 4>},
          &unpack_panel<Values>};
}

constexpr Functions kFunctions[] = {
#define LILLIPUT_FUNCTIONS(name) functions_of<formats::name>(),
    LILLIPUT_FORMATS(LILLIPUT_FUNCTIONS)
#undef LILLIPUT_FUNCTIONS
};

const Functions& functions(formats::FormatId format) {
  return kFunctions[static_cast<std::size_t>(format)];
}

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
void multiply_chunk(const Weight& weight, const float* input, std::int64_t tokens, std::int64_t row,
                    std::int64_t row_end, FloatPanel* panels, float* sums) {
  const Functions& f = functions(weight.format);
  const std::int64_t tile_stride = padded_columns(weight.columns) * kTokenTile;
  std::fill_n(sums, round_up(tokens, kTokenTile) * kRowBlock, 0.0f);
  for (std::int64_t index = 0; index < segments_of(weight.columns); ++index) {
    for (int panel = 0; panel < kPanels; ++panel) {
      f.unpack_panel(weight, row + panel * kLanes, row_end, index, f.decode, panels[panel]);
    }
    const int columns = segment_columns(weight.columns, index);
    for (std::int64_t token = 0; token < tokens; token += kTokenTile) {
      const float* tile = input + token / kTokenTile * tile_stride + index * kSegment * kTokenTile;
      for (int panel = 0; panel < kPanels; panel += kPanelTile) {
        multiply_tile<kPanelTile>(panels + panel, tile, columns,
                                  sums + token * kRowBlock + panel * kLanes);
      }
    }
  }
}

}  // namespace

std::size_t f32_prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  const std::int64_t stored = tokens <= kFewTokens ? tokens : round_up(tokens, kTokenTile);
  return static_cast<std::size_t>(stored * padded_columns(columns)) * sizeof(float);
}

void f32_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                 std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  auto* result = reinterpret_cast<float*>(prepared);
  const std::int64_t padded = padded_columns(columns);
  if (tokens <= kFewTokens) {
    for (std::int64_t token = token_begin; token < token_end; ++token) {
      float* row = result + token * padded;
      std::copy_n(x + token * x_stride, columns, row);
      std::fill(row + columns, row + padded, 0.0f);
    }
    return;
  }
  for (std::int64_t token = token_begin; token < token_end; token += kTokenTile) {
    float* tile = result + token * padded;
    if (token_end - token < kTokenTile || columns < padded) {
      std::fill_n(tile, padded * kTokenTile, 0.0f);
    }
    const std::int64_t in_tile = std::min<std::int64_t>(kTokenTile, token_end - token);
    for (std::int64_t t = 0; t < in_tile; ++t) {
      const float* row = x + (token + t) * x_stride;
      for (std::int64_t column = 0; column < columns; ++column) {
        tile[column * kTokenTile + t] = row[column];
      }
    }
  }
}

std::size_t f32_scratch_bytes(std::int64_t, std::int64_t tokens) {
  if (tokens <= kFewTokens) return 0;
  const std::int64_t waiting = round_up(std::min(tokens, kTokenChunk), kTokenTile);
  return kPanels * sizeof(FloatPanel) +
         static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

void f32_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens, float* y,
                  std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                  std::uint8_t* scratch) {
  const auto* x = reinterpret_cast<const float*>(prepared);
  if (tokens <= kFewTokens) {
    const Functions& f = functions(weight.format);
    f.multiply_rows[tokens - 1](weight, x, {y, y_stride, row_begin, row_end}, f.decode);
    return;
  }
  auto* panels = reinterpret_cast<FloatPanel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(FloatPanel));
  const std::int64_t padded = padded_columns(weight.columns);
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < tokens; token += kTokenChunk) {
      const std::int64_t n = std::min(kTokenChunk, tokens - token);
      multiply_chunk(weight, x + token * padded, n, row, row_end, panels, sums);
      store_sums(sums, n, rows, y + token * y_stride + row, y_stride);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
