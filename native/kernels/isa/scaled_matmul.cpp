// SPDX-License-Identifier: Apache-2.0
#include "kernels/isa/scaled_matmul.h"

#include <cstring>
#include <optional>

#include "formats/all_formats.h"
#include "kernels/isa/blocks.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/scaled_prepare.h"
#include "kernels/isa/scaled_tile.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename Format>
constexpr ScaledGrid kGridOf = {Format::group_size, Format::zero_point, Format::largest_code};
template <typename Format>
constexpr ScaledKind kKindOf = {Format::group_size, Format::zero_point != 0, Format::has_minimum};

// What multiply was asked for.
struct Product {
  const Weight& weight;
  const std::uint8_t* prepared;
  std::int64_t tokens;
  float* y;
  std::int64_t y_stride;
};

// The blocks of kLanes rows from `row` on, segment by segment. Fewer rows than that at the end are
// copied, the last one repeated.
template <typename Format>
class RowGroup {
 public:
  RowGroup(const Weight& weight, std::int64_t row, std::int64_t row_end)
      : weight_(weight), row_(row), last_(std::min(row_end - row, std::int64_t{kLanes}) - 1) {}

  simd::Rows segment(std::int64_t index) {
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(typename Format::Block));
    const std::uint8_t* first = weight_.blocks + row_ * weight_.row_bytes + index * kBytes;
    for (int lane = 0; lane <= last_; ++lane) prefetch_segment(weight_, row_ + lane, index + 1);
    if (last_ == kLanes - 1) return {first, weight_.row_bytes};
    for (int lane = 0; lane < kLanes; ++lane) {
      std::memcpy(copies_ + lane * kBytes,
                  first + std::min<std::int64_t>(lane, last_) * weight_.row_bytes, kBytes);
    }
    return {copies_, kBytes};
  }

 private:
  const Weight& weight_;
  std::int64_t row_;
  std::int64_t last_;
  std::uint8_t copies_[kLanes * sizeof(typename Format::Block)];
};

// ---- few tokens ----

template <typename Format>
void multiply_few(const Product& product, std::int64_t row_begin, std::int64_t row_end) {
  constexpr ScaledKind kKind = kKindOf<Format>;
  const Weight& weight = product.weight;
  const auto* input = reinterpret_cast<const ScaledTile<Format::group_size>*>(product.prepared);
  const std::int64_t segments = segments_of(weight.columns);
  const std::int64_t tiles = divide_up(product.tokens, kScaledTile);
  for (std::int64_t row = row_begin; row < row_end; row += kLanes) {
    alignas(64) float sums[kMostUnpairedTokens * kLanes] = {};
    RowGroup<Format> rows(weight, row, row_end);
    for (std::int64_t index = 0; index < segments; ++index) {
      simd::RowLanes lanes;
      Format::unpack_rows(rows.segment(index), lanes);
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        multiply_lanes<kKind>(lanes, input[tile * segments + index],
                              sums + tile * kScaledTile * kLanes, kLanes);
      }
    }
    const std::int64_t count = std::min<std::int64_t>(kLanes, row_end - row);
    for (std::int64_t token = 0; token < product.tokens; ++token) {
      std::copy_n(sums + token * kLanes, count, product.y + token * product.y_stride + row);
    }
  }
}

// ---- many tokens ----

using Panel = std::conditional_t<kPairsGroups, PairedPanel, simd::RowLanes>;

template <ScaledKind kind>
void multiply_panel(const Panel& panel, const ScaledTile<kind.group_size>& input, float* sums) {
  if constexpr (kPairsGroups) {
    multiply_paired<kind>(panel, input, sums, kRowBlock);
  } else {
    multiply_lanes<kind>(panel, input, sums, kRowBlock);
  }
}

template <typename Format>
void unpack_panel(const simd::Rows& rows, Panel& panel) {
  if constexpr (kPairsGroups) {
    simd::RowLanes lanes;
    Format::unpack_rows(rows, lanes);
    pair_groups<kKindOf<Format>>(lanes, panel);
  } else {
    Format::unpack_rows(rows, panel);
  }
}

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
template <typename Format>
void multiply_chunk(const Product& product, std::int64_t tokens,
                    const ScaledTile<Format::group_size>* input, std::int64_t row,
                    std::int64_t row_end, std::uint8_t* scratch) {
  const Weight& weight = product.weight;
  auto* panels = reinterpret_cast<Panel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel));
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, kScaledTile) * kRowBlock, 0.0f);
  const int used =
      static_cast<int>(std::min<std::int64_t>(kPanels, divide_up(row_end - row, kLanes)));
  for (std::int64_t index = 0; index < segments; ++index) {
    for (int panel = 0; panel < used; ++panel) {
      RowGroup<Format> rows(weight, row + panel * kLanes, row_end);
      unpack_panel<Format>(rows.segment(index), panels[panel]);
    }
    for (std::int64_t token = 0; token < tokens; token += kScaledTile) {
      for (int panel = 0; panel < used; ++panel) {
        multiply_panel<kKindOf<Format>>(panels[panel],
                                        input[token / kScaledTile * segments + index],
                                        sums + token * kRowBlock + panel * kLanes);
      }
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
  const auto* sums = reinterpret_cast<const float*>(scratch + kPanels * sizeof(Panel));
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

std::size_t scaled_scratch_bytes(std::int64_t, std::int64_t tokens) {
  if (tokens <= kMostUnpairedTokens) return 0;
  const std::int64_t waiting = round_up(std::min(tokens, kChunkTokens), kScaledTile);
  return kPanels * sizeof(Panel) + static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

template <typename Format>
void scaled_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                     float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                     std::uint8_t* scratch) {
  const Product product{weight, prepared, tokens, y, y_stride};
  if (tokens <= kFewTokens) {
    int8_multiply(weight, prepared, tokens, y, y_stride, row_begin, row_end, scratch);
  } else if (tokens <= kMostUnpairedTokens) {
    multiply_few<Format>(product, row_begin, row_end);
  } else {
    multiply_many<Format>(product, row_begin, row_end, scratch);
  }
}

template <typename Format>
constexpr std::optional<MatmulKernel> kernel_of() {
  if constexpr (requires { &Format::unpack_rows; }) {
    constexpr ScaledGrid kGrid = kGridOf<Format>;
    return MatmulKernel{InputLayout::int8_scaled,
                        scaled_prepared_bytes<kGrid>,
                        scaled_prepare<kGrid>,
                        scaled_multiply<Format>,
                        kScaledTile,
                        kRowBlock,
                        scaled_scratch_bytes};
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

const MatmulKernel* scaled_kernel(formats::FormatId format) {
  const std::optional<MatmulKernel>& kernel = kKernels[static_cast<std::size_t>(format)];
  return kernel ? &*kernel : nullptr;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
