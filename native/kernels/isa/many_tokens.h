// SPDX-License-Identifier: Apache-2.0
// Many tokens times rows as lanes, whatever the weights' scales are.
#pragma once

#include "kernels/isa/row_words.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// A Scheme says how a format's panels and inputs look:
//   Format
//   Panel, Input   kLanes rows x 256 columns; 256 columns of kTile tokens, [segment][tile]
//   kChunkTokens   a multiple of kTile whose sums stay in a 1 MB L2
//   kTogether      panels that are multiplied together
//   unpack(words, columns, panel)
//   multiply(panels, used, input, size, sums)   sums[t][kRowBlock] += `used` panels

// How much of an input there is.
struct Size {
  int tokens;
  int columns;
};

template <typename Scheme>
std::size_t many_scratch_bytes(std::int64_t tokens) {
  const std::int64_t waiting = round_up(std::min(tokens, Scheme::kChunkTokens), Scheme::kTile);
  return kPanels * sizeof(typename Scheme::Panel) +
         static_cast<std::size_t>(waiting * kRowBlock) * sizeof(float);
}

// Asks for the interleaved weights that a block of rows needs next, a few lines at a time: all at
// once they would fill the queue of outstanding reads and hold up the products.
template <typename Format>
class NextSegment {
 public:
  // steps: calls of `advance` to come.
  NextSegment(const Weight& weight, std::int64_t row, int panels, std::int64_t index,
              std::int64_t steps)
      : lines_(weight.is_interleaved ? panels * kSegmentLines<Format> : 0), steps_(steps) {
    constexpr auto kBytes = kWords<Format> * static_cast<std::int64_t>(sizeof(Int));
    if (index == segments_of(weight.columns)) {
      row += kRowBlock;
      index = 0;
    }
    first_ = weight.blocks + row * weight.row_bytes + index * kBytes;
    panel_bytes_ = kLanes * weight.row_bytes;
  }

  // Harmless past the end.
  void advance() {
    ++step_;
    for (; line_ * steps_ < lines_ * step_; ++line_) {
      const std::int64_t panel = line_ / kSegmentLines<Format>;
      prefetch_line(first_ + panel * panel_bytes_ + line_ % kSegmentLines<Format> * 64);
    }
  }

 private:
  const std::uint8_t* first_;
  std::int64_t panel_bytes_;
  std::int64_t lines_;
  std::int64_t steps_;
  std::int64_t line_ = 0;
  std::int64_t step_ = 0;
};

// kRowBlock rows for one chunk of tokens: sums wait in scratch while segments pass.
template <typename Scheme>
void multiply_chunk(const Product& product, std::int64_t tokens,
                    const typename Scheme::Input* input, std::int64_t row, std::int64_t row_end,
                    std::uint8_t* scratch) {
  const TileOrder order = order_of_many(product.tokens, Scheme::kTile);
  using Panel = typename Scheme::Panel;
  const Weight& weight = product.weight;
  auto* panels = reinterpret_cast<Panel*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + kPanels * sizeof(Panel));
  const std::int64_t segments = segments_of(weight.columns);
  std::fill_n(sums, round_up(tokens, Scheme::kTile) * kRowBlock, 0.0f);
  const std::int64_t last = (row_end - 1) / kLanes * kLanes;
  const auto used = static_cast<int>(round_up(
      std::min<std::int64_t>(kPanels, divide_up(row_end - row, kLanes)), Scheme::kTogether));
  for (std::int64_t index = 0; index < segments; ++index) {
    const int columns = segment_columns(weight.columns, index);
    for (int panel = 0; panel < used; ++panel) {
      // A panel past the end, multiplied together with the last, repeats it.
      RowWords<typename Scheme::Format> words(weight, std::min(row + panel * kLanes, last),
                                              row_end);
      Scheme::unpack(words.segment(index), columns, panels[panel]);
    }
    NextSegment<typename Scheme::Format> next(weight, row, used, index + 1,
                                              divide_up(tokens, Scheme::kTile));
    for (std::int64_t token = 0; token < tokens; token += Scheme::kTile) {
      const Size size{static_cast<int>(std::min<std::int64_t>(Scheme::kTile, tokens - token)),
                      columns};
      next.advance();
      Scheme::multiply(panels, used, input[order.of(token / Scheme::kTile, index)], size,
                       sums + token * kRowBlock);
    }
  }
}

template <typename Scheme>
void multiply_many(const Product& product, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch) {
  const auto* input = reinterpret_cast<const typename Scheme::Input*>(product.prepared);
  const auto* sums =
      reinterpret_cast<const float*>(scratch + kPanels * sizeof(typename Scheme::Panel));
  for (std::int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, row_end - row));
    for (std::int64_t token = 0; token < product.tokens; token += Scheme::kChunkTokens) {
      const std::int64_t n = std::min(Scheme::kChunkTokens, product.tokens - token);
      multiply_chunk<Scheme>(product, n, input + token / Scheme::kTile, row, row_end, scratch);
      store_sums(sums, n, rows, product.y + token * product.y_stride + row, product.y_stride);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
