// SPDX-License-Identifier: Apache-2.0
// Few tokens times rows as lanes, whatever the weights' scales are.
#pragma once

#include "kernels/isa/row_words.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Lanes: multiplies what Format's `unpack_rows` gives with one Input, `tile` tokens of a segment.
// Codes are unpacked anew for each tile, which costs less than to keep them. most_tokens: whole
// tiles.
template <typename Format, typename Lanes, typename Input, int tile, int most_tokens>
void multiply_few(const Product& product, std::int64_t row_begin, std::int64_t row_end) {
  const Weight& weight = product.weight;
  const auto* input = reinterpret_cast<const Input*>(product.prepared);
  const std::int64_t segments = segments_of(weight.columns);
  for (std::int64_t row = row_begin; row < row_end; row += kLanes) {
    alignas(64) float sums[most_tokens * kLanes];
    RowWords<Format> words(weight, row, row_end);
    for (std::int64_t i = 0; i < divide_up(product.tokens, tile); ++i) {
      float* tile_sums = sums + i * tile * kLanes;
      std::fill_n(tile_sums, tile * kLanes, 0.0f);
      for (std::int64_t index = 0; index < segments; ++index) {
        // One to four tokens are read ahead well enough by the machine, which asking disturbs.
        if (tile > 4 && i == 0) words.prefetch(index + 1);
        Lanes lanes(input[i * segments + index]);
        Format::unpack_rows(words.segment(index), lanes);
        lanes.add_to_sums(tile_sums);
      }
    }
    const std::int64_t count = std::min<std::int64_t>(kLanes, row_end - row);
    for (std::int64_t token = 0; token < product.tokens; ++token) {
      std::copy_n(sums + token * kLanes, count, product.y + token * product.y_stride + row);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
