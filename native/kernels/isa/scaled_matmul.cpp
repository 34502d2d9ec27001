// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/scaled_matmul.h"

#include <optional>

#include "formats/all_formats.h"
#include "kernels/isa/few_tokens.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/scaled_prepare.h"
#include "kernels/isa/scaled_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename Format>
constexpr ScaledGrid grid_of_scales() {
  ScaledGrid grid{Format::group_size, Format::zero_point, Format::largest_code, false, 0};
  if constexpr (requires { Format::least_product; }) {
    grid.folds = true;
    grid.least_product = Format::least_product;
  }
  return grid;
}
template <typename Format>
constexpr ScaledGrid kGridOf = grid_of_scales<Format>();
template <typename Format>
constexpr ScaledKind kKindOf = {Format::group_size, Format::zero_point != 0, Format::has_minimum};

// ---- many tokens ----

template <typename Format>
constexpr Arrangement kArrangement = arrangement_of<kGridOf<Format>>(kMostFewScaled + 1);
template <typename Format>
using Panel = std::conditional_t<
    kArrangement<Format> == Arrangement::folded, FoldedPanel,
    std::conditional_t<kArrangement<Format> == Arrangement::paired, PairedPanel, simd::RowLanes>>;

template <typename Format>
void unpack_panel(const Int* words, Panel<Format>& panel) {
  if constexpr (kArrangement<Format> == Arrangement::paired) {
    PairingLanes<kKindOf<Format>> lanes(panel);
    Format::unpack_rows(words, lanes);
    lanes.finish();
  } else if constexpr (kArrangement<Format> == Arrangement::folded) {
    FoldingLanes<kGridOf<Format>, Format::has_minimum> lanes(panel);
    Format::unpack_rows(words, lanes);
    lanes.finish();
  } else {
    Format::unpack_rows(words, panel);
  }
}

// `used` panels with one tile of tokens.
template <typename Format>
void multiply_panels(const Panel<Format>* panels, int used,
                     const ScaledTile<Format::group_size>& input, float* sums) {
  constexpr ScaledKind kKind = kKindOf<Format>;
  for (int panel = 0; panel < used; ++panel) {
    float* tile = sums + panel * kLanes;
    if constexpr (kArrangement<Format> == Arrangement::folded) {
      const bool two = panel + 1 < used;
      for (int token = 0; token < kScaledTile; token += kFoldedTokens) {
        float* to = tile + token * kRowBlock;
        if (two) {
          multiply_folded<kKind, 2>(panels + panel, input, token, to, kRowBlock);
        } else {
          multiply_folded<kKind, 1>(panels + panel, input, token, to, kRowBlock);
        }
      }
      panel += two;
    } else if constexpr (kArrangement<Format> == Arrangement::paired) {
      multiply_paired<kKind>(panels[panel], input, tile, kRowBlock);
    } else {
      multiply_lanes<kKind>(panels[panel], input, tile, kRowBlock);
    }
  }
}

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
template <typename Format>
void multiply_chunk(const Product& product, std::int64_t tokens,
                    const ScaledTile<Format::group_size>* input, std::int64_t row,
                    std::int64_t row_end, std::uint8_t* scratch) {
  const Weight& weight = product.weight;
  auto* panels = reinterpret_cast<Panel<Format>*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel<Format>));
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kScaledTile) * kRowBlock, 0.0f);
  const int used =
      static_cast<int>(std::min<std::int64_t>(kPanels, divide_up(row_end - row, kLanes)));
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < used; ++panel) {
      RowWords<Format> words(weight, row + panel * kLanes, row_end);
      unpack_panel<Format>(words.segment(index), panels[panel]);
      words.prefetch(index + 1);
    }
    for (std::int64_t token = 0; token < tokens; token += kScaledTile) {
      multiply_panels<Format>(panels, used, input[token / kScaledTile * segments + index],
                              sums + token * kRowBlock);
    }
  }
}

// A multiple of every tile whose sums stay in a 1 MB L2.
constexpr std::int64_t kChunkTokens = 512;
static_assert(kChunkTokens % kScaledTile == 0);

template <typename Format>
void multiply_many(const Product& product, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  const auto* input = reinterpret_cast<const ScaledTile<Format::group_size>*>(product.prepared);
  const std::int64_t segments = segments_of(product.weight.columns);
  const auto* sums = reinterpret_cast<const float*>(scratch + kPanels * sizeof(Panel<Format>));
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < product.tokens; token += kChunkTokens) {
      const std::int64_t n = std::min(kChunkTokens, product.tokens - token);
      multiply_chunk<Format>(product, n, input + token / kScaledTile * segments, row, row_end,
                             scratch);
      store_sums(sums, n, rows, product.y + token * product.y_stride + row, product.y_stride);
    }
  }
}

// ---- the table ----

template <typename Format>
std::size_t scaled_scratch_bytes(std::int64_t, std::int64_t tokens) {
  if (tokens <= kMostFewScaled) return 0;
  const std::int64_t waiting = round_up(std::min(tokens, kChunkTokens), kScaledTile);
  return kPanels * sizeof(Panel<Format>) +
         static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

template <typename Format>
void scaled_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                     float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                     std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (!weight.is_interleaved && tokens <= kFewTokens) {
    int8_multiply(weight, prepared, tokens, y, y_stride, row_begin, row_end, scratch);
  } else if (tokens <= kMostFewScaled) {
    with_tile(tokens, [&]<int tile>() {
      multiply_few<Format, LaneProduct<kKindOf<Format>, tile>, ScaledTile<Format::group_size, tile>,
                   tile, kMostFewScaled>(product, row_begin, row_end);
    });
  } else {
    multiply_many<Format>(product, row_begin, row_end, scratch);
  }
}

template <typename Format, bool is_interleaved>
constexpr std::optional<MatmulKernel> kernel_of() {
  if constexpr (requires { Format::largest_code; }) {
    constexpr ScaledGrid kGrid = kGridOf<Format>;
    return MatmulKernel{InputLayout::int8_scaled,
                        scaled_prepared_bytes<kGrid, is_interleaved>,
                        scaled_prepare<kGrid, is_interleaved>,
                        scaled_multiply<Format>,
                        kScaledTile,
                        kRowBlock,
                        scaled_scratch_bytes<Format>,
                        is_interleaved ? interleaved_row_bytes<Format> : nullptr,
                        is_interleaved ? interleave<Format> : nullptr};
  } else {
    return std::nullopt;
  }
}

constexpr std::optional<MatmulKernel> kStored[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name, false>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};
constexpr std::optional<MatmulKernel> kInterleaved[] = {
#define LILLIPUT_KERNEL(name) kernel_of<formats::name, true>(),
    LILLIPUT_FORMATS(LILLIPUT_KERNEL)
#undef LILLIPUT_KERNEL
};

}  // namespace

const MatmulKernel* scaled_kernel(formats::FormatId format, bool is_interleaved) {
  const auto& kernel = (is_interleaved ? kInterleaved : kStored)[static_cast<std::size_t>(format)];
  return kernel ? &*kernel : nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
