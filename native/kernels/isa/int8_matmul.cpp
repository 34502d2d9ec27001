// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/int8_matmul.h"

#include "formats/all_formats.h"
#include "kernels/isa/blocks.h"
#include "kernels/isa/int8_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// ---- unpacking ----

using UnpackSegment = simd::Segment (*)(const Weight& weight, std::int64_t row, std::int64_t index);

template <typename Format>
inline simd::Segment unpack_segment(const Weight& weight, std::int64_t row, std::int64_t index) {
  PaddedSegment<Format> padded;
  return Format::unpack(segment_blocks<Format>(weight, row, index, padded));
}

// Inlined into the row product where unpacking is a few vector instructions. Codebook look-ups cost
// more than a call, and the portable build is there to be correct: these share one row product per
// grid, which keeps the build short.
template <typename Format>
constexpr bool is_inlined() {
  return kLanes > 4 && !requires { Format::uses_codebook; };
}

// ---- few tokens ----

// Sums of one row over all its segments, with the input's scales folded into the row's.
template <Grid grid, int n_tokens, typename Unpack>
inline void multiply_row(const Weight& weight, const RowInput* input, std::int64_t row,
                         Unpack unpack, float (&result)[n_tokens]) {
  constexpr bool kHalves = grid.group_size == 16;
  // Independent sums hide the latency of the multiply-add.
  constexpr int kChains = n_tokens == 1 ? 4 : 2;
  Float sums[n_tokens][kChains];
  Float offsets[n_tokens];
  for (int t = 0; t < n_tokens; ++t) {
    for (Float& sum : sums[t]) sum = simd::zero();
    offsets[t] = simd::zero();
  }
  const std::int64_t segments = segments_of(weight.columns);
  for (std::int64_t index = 0; index < segments; ++index) {
    const simd::Segment segment = unpack(weight, row, index);
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; ++t) {
      const RowInput& in = input[t * segments + index];
      const simd::Groups factors =
          segment.scale * simd::load_groups(kHalves ? in.scale16 : in.scale32);
      const float* scaled_sums = kHalves ? in.scaled_sum16 : in.scaled_sum32;
      if constexpr (grid.has_minimum || grid.zero_point != 0) {
#pragma GCC unroll 4
        for (int i = 0; i < kCodeVectors; ++i) {
          const Float offset = grid.has_minimum ? segment.minimum.part[i] : segment.scale.part[i];
          offsets[t] = simd::fma(offset, simd::load(scaled_sums + kLanes * i), offsets[t]);
        }
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
    const float offset =
        simd::sum(offsets[t]) * (grid.has_minimum ? 1.0f : static_cast<float>(grid.zero_point));
    result[t] = simd::sum(total) - offset;
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
template <Grid grid, int n_tokens, typename Unpack>
inline void multiply_rows(const Weight& weight, const RowInput* input, std::int64_t tokens,
                          const Output& output, Unpack unpack) {
  for (std::int64_t row = output.row_begin; row < output.row_end; ++row) {
    float result[n_tokens];
    multiply_row<grid, n_tokens>(weight, input, row, unpack, result);
    for (std::int64_t t = 0; t < std::min<std::int64_t>(tokens, n_tokens); ++t) {
      output.y[t * output.y_stride + row] = result[t];
    }
  }
}

template <Grid grid, typename Unpack>
inline void multiply_few(const Weight& weight, const RowInput* input, std::int64_t tokens,
                         const Output& output, Unpack unpack) {
  if (tokens == 1) {
    multiply_rows<grid, 1>(weight, input, tokens, output, unpack);
  } else if (tokens == 2) {
    multiply_rows<grid, 2>(weight, input, tokens, output, unpack);
  } else {
    multiply_rows<grid, kFewTokens>(weight, input, tokens, output, unpack);
  }
}

template <typename Format>
struct InlinedUnpack {
  [[gnu::always_inline]] simd::Segment operator()(const Weight& weight, std::int64_t row,
                                                  std::int64_t index) const {
    return unpack_segment<Format>(weight, row, index);
  }
};

template <typename Format>
void multiply_few_inlined(const Weight& weight, const RowInput* input, std::int64_t tokens,
                          const Output& output, UnpackSegment) {
  multiply_few<grid_of<Format>()>(weight, input, tokens, output, InlinedUnpack<Format>{});
}

template <Grid grid>
void multiply_few_shared(const Weight& weight, const RowInput* input, std::int64_t tokens,
                         const Output& output, UnpackSegment unpack) {
  multiply_few<grid>(weight, input, tokens, output, unpack);
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
  constexpr int kGroups = kSegment / grid.group_size;
  for (int i = 0; i < kCodeVectors && i * kLanes < kGroups; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = (Int)segments[lane].scale.part[i];
    simd::transpose(square);
    for (int lane = 0; lane < kLanes; ++lane) panel.scale[kLanes * i + lane] = (Float)square[lane];
    if constexpr (!grid.has_minimum) continue;
    for (int lane = 0; lane < kLanes; ++lane) square[lane] = (Int)-segments[lane].minimum.part[i];
    simd::transpose(square);
    for (int lane = 0; lane < kLanes; ++lane) {
      panel.minus_minimum[kLanes * i + lane] = (Float)square[lane];
    }
  }
}

// ---- the table ----

struct Functions {
  UnpackSegment unpack;
  void (*multiply_few)(const Weight& weight, const RowInput* input, std::int64_t tokens,
                       const Output& output, UnpackSegment unpack);
  void (*transpose)(const simd::Segment (&segments)[kLanes], Panel& panel);
  void (*multiply_panels)(const Panel* panels, const TileInput& input, int tokens, int groups32,
                          float* sums);
};

template <typename Format>
constexpr Functions functions_of() {
  if constexpr (requires { &Format::unpack; }) {
    constexpr Grid kGrid = grid_of<Format>();
    Functions functions{&unpack_segment<Format>, nullptr, &transpose_segments<kGrid>,
                        &multiply_panels<kGrid>};
    if constexpr (is_inlined<Format>()) {
      functions.multiply_few = &multiply_few_inlined<Format>;
    } else {
      functions.multiply_few = &multiply_few_shared<kGrid>;
    }
    return functions;
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
    segments[lane] = f.unpack(weight, std::min(row + lane, row_end - 1), index);
  }
  f.transpose(segments, panel);
}

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
void multiply_chunk(const Weight& weight, const TileInput* input, std::int64_t tokens,
                    std::int64_t row, std::int64_t row_end, Panel* panels, float* sums) {
  const Functions& f = functions(weight.format);
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kTokenTile) * kRowBlock, 0.0f);
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < kPanels; ++panel) {
      unpack_panel(f, weight, row + panel * kLanes, row_end, index, panels[panel]);
    }
    const int groups32 = segment_columns(weight.columns, index) / 32;
    for (std::int64_t token = 0; token < tokens; token += kTokenTile) {
      const int in_tile = static_cast<int>(std::min<std::int64_t>(kTokenTile, tokens - token));
      f.multiply_panels(panels, input[token / kTokenTile * segments + index], in_tile, groups32,
                        sums + token * kRowBlock);
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
  auto* panels = reinterpret_cast<Panel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel));
  const auto* input = reinterpret_cast<const TileInput*>(prepared);
  const std::int64_t segments = segments_of(weight.columns);
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < tokens; token += kTokenChunk) {
      const std::int64_t n = std::min(kTokenChunk, tokens - token);
      multiply_chunk(weight, input + token / kTokenTile * segments, n, row, row_end, panels, sums);
      store_sums(sums, n, rows, y + token * y_stride + row, y_stride);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
