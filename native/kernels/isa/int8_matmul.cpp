// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/int8_matmul.h"

#include <type_traits>

#include "formats/all_formats.h"
#include "kernels/isa/blocks.h"
#include "kernels/isa/int8_tile.h"
#include "kernels/isa/row_words.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// ---- unpacking ----

using UnpackSegment = simd::Segment (*)(const Weight& weight, std::int64_t row, std::int64_t index);

template <typename Format>
simd::Segment unpack_segment(const Weight& weight, std::int64_t row, std::int64_t index) {
  PaddedSegment<Format> padded;
  return Format::unpack(segment_blocks<Format>(weight, row, index, padded));
}

// The segments of one row. A ragged last one is copied beforehand: a call inside the loop over
// segments would cost it every constant that it keeps in registers.
template <typename Format>
class InlinedRow {
 public:
  InlinedRow(const Weight& weight, std::int64_t row, UnpackSegment) {
    const std::int64_t last = segments_of(weight.columns) - 1;
    first_ = segment_blocks<Format>(weight, row, 0, padded_);
    last_index_ = last;
    last_ = segment_blocks<Format>(weight, row, last, padded_);
  }
  [[gnu::always_inline]] simd::Segment operator[](std::int64_t index) const {
    constexpr std::int64_t kBlocks = kSegment / Format::block_size;
    if constexpr (kBlocks == 1) return Format::unpack(first_ + index);
    return Format::unpack(index == last_index_ ? last_ : first_ + index * kBlocks);
  }

 private:
  const typename Format::Block* first_;
  const typename Format::Block* last_;
  std::int64_t last_index_;
  PaddedSegment<Format> padded_;
};

class SharedRow {
 public:
  SharedRow(const Weight& weight, std::int64_t row, UnpackSegment unpack)
      : weight_(weight), row_(row), unpack_(unpack) {}
  simd::Segment operator[](std::int64_t index) const { return unpack_(weight_, row_, index); }

 private:
  const Weight& weight_;
  std::int64_t row_;
  UnpackSegment unpack_;
};

// Inlined into the row product where unpacking is a few vector instructions. Codebook look-ups cost
// more than a call, and the portable build is there to be correct: these share one row product per
// grid, which keeps the build short.
template <typename Format>
constexpr bool is_inlined() {
  return kLanes > 4 && !requires { Format::uses_codebook; };
}

// ---- few tokens ----

// Sums of one row over all its segments, with the input's scales folded into the row's.
template <Grid grid, int n_tokens, typename Row>
inline void multiply_row(const Row& row, const RowInput* input, std::int64_t segments,
                         float (&result)[n_tokens]) {
  constexpr bool kHalves = grid.group_size == 16;
  constexpr bool kHasOffset = grid.has_minimum || grid.zero_point != 0;
  // Independent sums hide the latency of the multiply-add.
  constexpr int kChains = n_tokens == 1 ? 4 : 2;
  Float sums[n_tokens][kChains];
  Float offsets[n_tokens];
  for (int t = 0; t < n_tokens; ++t) {
    for (Float& sum : sums[t]) sum = simd::zero();
    offsets[t] = simd::zero();
  }
  for (std::int64_t index = 0; index < segments; ++index) {
    const simd::Segment segment = row[index];
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; ++t) {
      const RowInput& in = input[t * segments + index];
      const simd::Groups factors =
          segment.scale * simd::load_groups(kHalves ? in.scale16 : in.factors32);
      if constexpr (kHasOffset && kHalves) {
        const simd::Groups scaled_sums = simd::load_groups(in.scaled_sum16);
#pragma GCC unroll 4
        for (int i = 0; i < kCodeVectors; ++i) {
          const Float offset = grid.has_minimum ? segment.minimum.part[i] : segment.scale.part[i];
          offsets[t] = simd::fma(offset, scaled_sums.part[i], offsets[t]);
        }
      } else if constexpr (kHasOffset) {
#pragma GCC unroll 2
        for (int i = kCodeVectors / 2; i < kCodeVectors; ++i) offsets[t] += factors.part[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < 4 * kCodeVectors; ++i) {
        const Int weights = segment.codes[i / kCodeVectors].part[i % kCodeVectors];
        const Int codes = simd::load_int(in.codes + 4 * kLanes * i);
        const Int dot = grid.is_signed ? simd::dot_signed(Int{}, weights, codes)
                                       : simd::dot_unsigned(Int{}, weights, codes);
        Float& sum = sums[t][i % kChains];
        sum = simd::fma(simd::to_float(dot), simd::spread<grid.group_size>(factors, i), sum);
      }
    }
  }
  for (int t = 0; t < n_tokens; ++t) {
    Float total = sums[t][0];
    for (int chain = 1; chain < kChains; ++chain) total += sums[t][chain];
    if constexpr (kHasOffset) {
      constexpr float kFactor = grid.has_minimum ? 1.0f : static_cast<float>(grid.zero_point);
      const Float offset = kHalves ? offsets[t] : simd::upper_lanes(offsets[t]);
      total -= offset * simd::broadcast(kFactor);
    }
    result[t] = simd::sum(total);
  }
}

// Where results go: y[token][row] for the rows [row_begin, row_end).
struct Output {
  float* y;
  std::int64_t y_stride;
  std::int64_t row_begin;
  std::int64_t row_end;
};

// Three tokens are prepared and computed as four.
template <Grid grid, typename Row, int n_tokens>
inline void multiply_rows(const Weight& weight, const RowInput* input, std::int64_t tokens,
                          const Output& output, UnpackSegment unpack) {
  const std::int64_t segments = segments_of(weight.columns);
  for (std::int64_t index = output.row_begin; index < output.row_end; ++index) {
    float result[n_tokens];
    multiply_row<grid>(Row(weight, index, unpack), input, segments, result);
    for (std::int64_t t = 0; t < std::min<std::int64_t>(tokens, n_tokens); ++t) {
      output.y[t * output.y_stride + index] = result[t];
    }
  }
}

template <Grid grid, typename Row>
void multiply_few(const Weight& weight, const RowInput* input, std::int64_t tokens,
                  const Output& output, UnpackSegment unpack) {
  if (tokens == 1) {
    multiply_rows<grid, Row, 1>(weight, input, tokens, output, unpack);
  } else if (tokens == 2) {
    multiply_rows<grid, Row, 2>(weight, input, tokens, output, unpack);
  } else {
    multiply_rows<grid, Row, kFewTokens>(weight, input, tokens, output, unpack);
  }
}

// ---- many tokens ----

// Turns the rows of kLanes unpacked segments into lanes.
template <Grid grid>
void transpose_segments(const simd::Segment (&segments)[kLanes], Panel& panel) {
  Int square[kLanes];
  for (int i = 0; i < 4 * kCodeVectors; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      square[lane] = segments[lane].codes[i / kCodeVectors].part[i % kCodeVectors];
    }
    simd::transpose(square);
    std::copy_n(square, kLanes, panel.codes + kLanes * i);
  }
  // Of 8 groups the second half of `scale` holds the minimums.
  Float parameters[16];
  for (int i = 0; i < kCodeVectors; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = (Int)segments[lane].scale.part[i];
    simd::transpose(square);
    for (int lane = 0; lane < kLanes; ++lane) parameters[kLanes * i + lane] = (Float)square[lane];
  }
  constexpr int kGroups = kSegment / grid.group_size;
  std::copy_n(parameters, kGroups, panel.scale);
  if constexpr (grid.has_minimum && kGroups == 8) {
    for (int group = 0; group < 8; ++group) panel.minus_minimum[group] = -parameters[8 + group];
  } else if constexpr (grid.has_minimum) {
    for (int i = 0; i < kCodeVectors; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) square[lane] = (Int)-segments[lane].minimum.part[i];
      simd::transpose(square);
      for (int lane = 0; lane < kLanes; ++lane) {
        panel.minus_minimum[kLanes * i + lane] = (Float)square[lane];
      }
    }
  }
}

// ---- the table ----

struct Functions {
  UnpackSegment unpack;
  void (*multiply_few)(const Weight& weight, const RowInput* input, std::int64_t tokens,
                       const Output& output, UnpackSegment unpack);
  void (*transpose)(const simd::Segment (&segments)[kLanes], Panel& panel);
  void (*multiply_panels)(const Panel* panels, int used, const TileInput<kTokenTile>& input,
                          int tokens, int groups32, float* sums);
};

template <typename Format>
constexpr Functions functions_of() {
  if constexpr (requires { &Format::unpack; }) {
    constexpr Grid kGrid = grid_of<Format>();
    using Row = std::conditional_t<is_inlined<Format>(), InlinedRow<Format>, SharedRow>;
    return {&unpack_segment<Format>, &multiply_few<kGrid, Row>, &transpose_segments<kGrid>,
            &multiply_panels<kGrid>};
  } else {
    return {};
  }
}

constexpr Functions kFunctions[] = {
#define LILLIPUT_FUNCTIONS(name) functions_of<formats::name>(),
    LILLIPUT_FORMATS(LILLIPUT_FUNCTIONS)
#undef LILLIPUT_FUNCTIONS
};

const Functions& functions(formats::FormatId format) {
  return kFunctions[static_cast<std::size_t>(format)];
}

// Unpacks segment `index` of rows [row, row + kLanes); rows past the end repeat the last one.
void unpack_panel(const Functions& f, const Weight& weight, std::int64_t row, std::int64_t row_end,
                  std::int64_t index, Panel& panel) {
  simd::Segment segments[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t source = std::min(row + lane, row_end - 1);
    segments[lane] = f.unpack(weight, source, index);
    prefetch_segment(weight, source, index + 1);
  }
  f.transpose(segments, panel);
}

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
void multiply_chunk(const Product& product, std::int64_t tokens, const TileInput<kTokenTile>* input,
                    std::int64_t row, std::int64_t row_end, std::uint8_t* scratch) {
  const Weight& weight = product.weight;
  const Functions& f = functions(weight.format);
  const TileOrder order = order_of_many(product.tokens, kTokenTile);
  auto* panels = reinterpret_cast<Panel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel));
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kTokenTile) * kRowBlock, 0.0f);
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < kPanels; ++panel) {
      unpack_panel(f, weight, row + panel * kLanes, row_end, index, panels[panel]);
    }
    const int groups32 = segment_columns(weight.columns, index) / 32;
    for (std::int64_t token = 0; token < tokens; token += kTokenTile) {
      const int in_tile = static_cast<int>(std::min<std::int64_t>(kTokenTile, tokens - token));
      f.multiply_panels(panels, kPanels, input[order.of(token / kTokenTile, index)], in_tile,
                        groups32, sums + token * kRowBlock);
    }
  }
}

}  // namespace

bool has_int8_kernel(formats::FormatId format) { return functions(format).unpack != nullptr; }

std::size_t int8_scratch_bytes(std::int64_t, std::int64_t tokens) {
  if (tokens <= kFewTokens) return 0;
  const std::int64_t waiting = round_up(std::min(tokens, kTokenChunk), kTokenTile);
  return kPanels * sizeof(Panel) + static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

void int8_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  if (tokens <= kFewTokens) {
    const Functions& f = functions(weight.format);
    f.multiply_few(weight, reinterpret_cast<const RowInput*>(prepared), tokens,
                   {y, y_stride, row_begin, row_end}, f.unpack);
    return;
  }
  const Product product{weight, prepared, tokens, y, y_stride};
  const auto* input = reinterpret_cast<const TileInput<kTokenTile>*>(prepared);
  const auto* sums = reinterpret_cast<const float*>(scratch + kPanels * sizeof(Panel));
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < tokens; token += kTokenChunk) {
      const std::int64_t n = std::min(kTokenChunk, tokens - token);
      multiply_chunk(product, n, input + token / kTokenTile, row, row_end, scratch);
      store_sums(sums, n, rows, y + token * y_stride + row, y_stride);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
