// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include "formats/all_formats.h"
#include "kernels/isa/few_tokens.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/int8_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
template <typename Format>
void multiply_chunk(const Weight& weight, const TileInput<kTokenTile>* input, std::int64_t tokens,
                    std::int64_t row, std::int64_t row_end, std::uint8_t* scratch) {
  auto* panels = reinterpret_cast<Panel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel));
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kTokenTile) * kRowBlock, 0.0f);
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < kPanels; ++panel) {
      // Panels past the end repeat the last rows there are.
      const std::int64_t last = (row_end - 1) / kLanes * kLanes;
      RowWords<Format> words(weight, std::min(row + panel * kLanes, last), row_end);
      Format::unpack_rows(words.segment(index), panels[panel]);
      words.prefetch(index + 1);
    }
    const int groups32 = segment_columns(weight.columns, index) / 32;
    for (std::int64_t token = 0; token < tokens; token += kTokenTile) {
      const int in_tile = static_cast<int>(std::min<std::int64_t>(kTokenTile, tokens - token));
      multiply_panels<grid_of_rows<Format>()>(panels, input[token / kTokenTile * segments + index],
                                              in_tile, groups32, sums + token * kRowBlock);
    }
  }
}

template <typename Format>
void multiply_many(const Product& product, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  const auto* input = reinterpret_cast<const TileInput<kTokenTile>*>(product.prepared);
  const std::int64_t segments = segments_of(product.weight.columns);
  const auto* sums = reinterpret_cast<const float*>(scratch + kPanels * sizeof(Panel));
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < product.tokens; token += kTokenChunk) {
      const std::int64_t n = std::min(kTokenChunk, product.tokens - token);
      multiply_chunk<Format>(product.weight, input + token / kTokenTile * segments, n, row, row_end,
                             scratch);
      store_sums(sums, n, rows, product.y + token * product.y_stride + row, product.y_stride);
    }
  }
}

template <typename Format>
void multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens, float* y,
              std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
              std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (tokens > kMostFewTokens) {
    multiply_many<Format>(product, row_begin, row_end, scratch);
    return;
  }
  with_input_tile<true>(tokens, [&]<int tile>() {
    multiply_few<Format, FloatLaneProduct<grid_of_rows<Format>(), tile>, TileInput<tile>, tile,
                 kMostFewTokens + kTokenTile>(product, row_begin, row_end);
  });
}

template <typename Format>
constexpr std::optional<MatmulKernel> kernel_of() {
  // Formats with integer scales (scaled_matmul.h) say how large their codes are.
  if constexpr (
      requires { &Format::template unpack_rows<Panel>; } && !requires { Format::largest_code; }) {
    return MatmulKernel{InputLayout::int8_32, int8_prepared_bytes<true>,
                        int8_prepare<true>,   multiply<Format>,
                        kTokenTile,           kRowBlock,
                        int8_scratch_bytes,   interleaved_row_bytes<Format>,
                        interleave<Format>};
  } else {
    return std::nullopt;
  }
}

constexpr std::optional<MatmulKernel> kKernels[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};

}  // namespace

const MatmulKernel* int8_interleaved_kernel(formats::FormatId format) {
  const std::optional<MatmulKernel>& kernel = kKernels[static_cast<std::size_t>(format)];
  return kernel ? &*kernel : nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
