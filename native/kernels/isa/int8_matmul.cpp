// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/int8_matmul.h"

#include "formats/all_formats.h"
#include "kernels/isa/blocks.h"
#include "kernels/isa/int8_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// ---- few tokens ----

// Sums of one row and n_tokens tokens over all its segments, with the input's scales folded into
// the row's.
template <typename Format, int n_tokens>
inline void multiply_row(const Weight& weight, const RowInput* input, std::int64_t segments,
                         std::int64_t row, float* y, std::int64_t y_stride) {
  constexpr bool kHalves = Format::group_size == 16;
  constexpr int kZero = grid_of<Format>().zero_point;
  constexpr int kChains =
      n_tokens == 1 ? 4 : 2;  // independent sums hide the latency of the multiply-add
  Float sums[n_tokens][kChains];
  Float offsets[n_tokens];
  for (int t = 0; t < n_tokens; ++t) {
    for (Float& sum : sums[t]) sum = simd::zero();
    offsets[t] = simd::zero();
  }
  for (std::int64_t index = 0; index < segments; ++index) {
    PaddedSegment<Format> padded;
    const simd::Segment segment =
        Format::unpack(segment_blocks<Format>(weight, row, index, padded));
#pragma GCC unroll 4
    for (int t = 0; t < n_tokens; ++t) {
      const RowInput& in = input[t * segments + index];
      const simd::Groups factors =
          segment.scale * simd::load_groups(kHalves ? in.scale16 : in.scale32);
      const float* scaled_sums = kHalves ? in.scaled_sum16 : in.scaled_sum32;
      if constexpr (Format::has_minimum || kZero != 0) {
#pragma GCC unroll 4
        for (int i = 0; i < kCodeVectors; ++i) {
          const Float offset =
              Format::has_minimum ? segment.minimum.part[i] : segment.scale.part[i];
          offsets[t] = simd::fma(offset, simd::load(scaled_sums + kLanes * i), offsets[t]);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < 4 * kCodeVectors; ++i) {
        const Int weights = segment.codes[i / kCodeVectors].part[i % kCodeVectors];
        const Int codes = simd::load_int(in.codes + 4 * kLanes * i);
        const Int dot = Format::is_signed ? simd::dot_signed(Int{}, weights, codes)
                                          : simd::dot_unsigned(Int{}, weights, codes);
        Float& sum = sums[t][i % kChains];
        sum = simd::fma(simd::to_float(dot), simd::spread<Format::group_size>(factors, i), sum);
      }
    }
  }
  for (int t = 0; t < n_tokens; ++t) {
    Float total = sums[t][0];
    for (int chain = 1; chain < kChains; ++chain) total += sums[t][chain];
    const float offset =
        simd::sum(offsets[t]) * (Format::has_minimum ? 1.0f : static_cast<float>(kZero));
    y[t * y_stride + row] = simd::sum(total) - offset;
  }
}

template <typename Format, int n_tokens>
void multiply_rows(const Weight& weight, const RowInput* input, float* y, std::int64_t y_stride,
                   std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t segments = segments_of(weight.columns);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    multiply_row<Format, n_tokens>(weight, input, segments, row, y, y_stride);
  }
}

// ---- many tokens ----

// Unpacks segment `index` of rows [row, row + kLanes) and turns rows into lanes; rows past the end
// repeat the last.
template <typename Format>
void unpack_panel(const Weight& weight, std::int64_t row, std::int64_t row_end, std::int64_t index,
                  Panel& panel) {
  constexpr int kVectors = 4 * kCodeVectors;
  Int codes[kVectors][kLanes];
  Int scale[kCodeVectors][kLanes];
  Int minimum[kCodeVectors][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    PaddedSegment<Format> padded;
    const simd::Segment segment = Format::unpack(
        segment_blocks<Format>(weight, std::min(row + lane, row_end - 1), index, padded));
    for (int i = 0; i < kVectors; ++i)
      codes[i][lane] = segment.codes[i / kCodeVectors].part[i % kCodeVectors];
    for (int i = 0; i < kCodeVectors; ++i) {
      scale[i][lane] = (Int)segment.scale.part[i];
      if constexpr (Format::has_minimum) minimum[i][lane] = (Int)-segment.minimum.part[i];
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    simd::transpose(codes[i]);
    std::copy_n(codes[i], kLanes, panel.codes + kLanes * i);
  }
  constexpr int kGroups = kSegment / Format::group_size;
  for (int i = 0; i < kCodeVectors && i * kLanes < kGroups; ++i) {
    simd::transpose(scale[i]);
    if constexpr (Format::has_minimum) simd::transpose(minimum[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      panel.scale[kLanes * i + lane] = (Float)scale[i][lane];
      if constexpr (Format::has_minimum)
        panel.minus_minimum[kLanes * i + lane] = (Float)minimum[i][lane];
    }
  }
}

// ---- the table ----

struct Functions {
  void (*multiply_rows[kFewTokens])(const Weight& weight, const RowInput* input, float* y,
                                    std::int64_t y_stride, std::int64_t row_begin,
                                    std::int64_t row_end);
  void (*unpack_panel)(const Weight& weight, std::int64_t row, std::int64_t row_end,
                       std::int64_t index, Panel& panel);
  void (*multiply_panels)(const Panel* panels, const TileInput& input, int tokens, int groups32,
                          float* sums);
};

template <typename Format>
constexpr Functions functions_of() {
  if constexpr (requires { &Format::unpack; }) {
    return {{&multiply_rows<Format, 1>, &multiply_rows<Format, 2>, &multiply_rows<Format, 3>,
             &multiply_rows<Format, 4>},
            &unpack_panel<Format>,
            &multiply_panels<grid_of<Format>()>};
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

// One block of rows for tokens [chunk, chunk + n): sums wait in scratch while segments pass.
void multiply_chunk(const Weight& weight, const TileInput* input, std::int64_t tokens,
                    std::int64_t row, std::int64_t row_end, Panel* panels, float* sums) {
  const Functions& f = functions(weight.format);
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kTokenTile) * kRowBlock, 0.0f);
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < kPanels; ++panel) {
      f.unpack_panel(weight, std::min(row + panel * kLanes, row_end - 1), row_end, index,
                     panels[panel]);
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

bool has_int8_kernel(formats::FormatId format) { return functions(format).unpack_panel != nullptr; }

std::size_t int8_scratch_bytes(std::int64_t, std::int64_t tokens) {
  if (tokens <= kFewTokens) return 0;
  const std::int64_t waiting = round_up(std::min(tokens, kTokenChunk), kTokenTile);
  return kPanels * sizeof(Panel) + static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

void int8_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  if (tokens <= kFewTokens) {
    const auto* input = reinterpret_cast<const RowInput*>(prepared);
    functions(weight.format)
        .multiply_rows[tokens - 1](weight, input, y, y_stride, row_begin, row_end);
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
