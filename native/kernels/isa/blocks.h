// SPDX-License-Identifier: Apache-2.0
// Segments of 256 columns of a row of stored blocks.
#pragma once

#include <cstring>

#include "kernels/isa/tiling.h"
#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Room for a ragged last segment: it is copied here and padded with zero bytes, which are zeros in
// every format, because reading past the row could leave the mapped file.
template <typename Format>
struct alignas(64) PaddedSegment {
  typename Format::Block blocks[kSegment / Format::block_size];
};

// The blocks of segment `index` of a row: in place, or the padded copy.
template <typename Format>
inline const typename Format::Block* segment_blocks(const Weight& weight, std::int64_t row,
                                                    std::int64_t index,
                                                    PaddedSegment<Format>& padded) {
  using Block = typename Format::Block;
  const std::uint8_t* bytes =
      weight.blocks + row * weight.row_bytes +
      index * static_cast<std::int64_t>(sizeof(PaddedSegment<Format>::blocks));
  const int columns = segment_columns(weight.columns, index);
  if (Format::block_size == kSegment || columns == kSegment)
    return reinterpret_cast<const Block*>(bytes);
  const std::size_t stored = static_cast<std::size_t>(columns / Format::block_size) * sizeof(Block);
  std::memset(&padded, 0, sizeof(padded));
  std::memcpy(&padded, bytes, stored);
  return padded.blocks;
}

// Asks for a segment that is needed once all tokens have met the current one: the rows of a panel
// are more streams than the hardware follows. Harmless past the end of a row or of the file.
inline void prefetch_segment(const Weight& weight, std::int64_t row, std::int64_t index) {
  const std::int64_t bytes = weight.row_bytes * kSegment / weight.columns;
  const std::uint8_t* segment = weight.blocks + row * weight.row_bytes + index * bytes;
  for (std::int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(segment + offset);
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
