// SPDX-License-Identifier: Apache-2.0
// Rows as lanes: the stored bytes of 256 columns of kLanes rows, word by word. Word w is a vector
// whose lane j holds the w-th four bytes of row j.
//
// Interleaved weights lie in memory like this, [group of kLanes rows][segment][word], so that a
// product reads one stream and needs neither transposition nor sums across lanes; weights as they
// are stored are gathered a segment at a time.
#pragma once

#include <cstring>
#include <optional>

#include "formats/spelled_codes.h"
#include "kernels/isa/blocks.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// What multiply was asked for.
struct Product {
  const Weight& weight;
  const std::uint8_t* prepared;
  std::int64_t tokens;
  float* y;
  std::int64_t y_stride;
};

// Codebook formats lie in memory written out (spelled_codes.h), TQ1_0 as TQ2_0 does.
template <typename Format>
inline constexpr bool kIsSpelled = requires { typename Format::Spelled; };
template <typename Format>
constexpr int segment_bytes() {
  if constexpr (kIsSpelled<Format>) {
    return static_cast<int>(sizeof(typename Format::Spelled));
  } else {
    return static_cast<int>(sizeof(PaddedSegment<Format>::blocks));
  }
}

// Floats of 16 bits: two columns a word.
template <typename Format>
inline constexpr bool kIsPlain = Format::block_size == 1;

// Words of a segment.
template <typename Format>
inline constexpr int kSegmentBytes = segment_bytes<Format>();
template <typename Format>
inline constexpr int kWords = (kSegmentBytes<Format> + 3) / 4;
template <typename Format>
inline constexpr int kPaddedBytes = static_cast<int>(round_up(kSegmentBytes<Format>, 16));
// Cache lines of a segment of kLanes interleaved rows.
template <typename Format>
inline constexpr std::int64_t kSegmentLines =
    divide_up(kWords<Format> * static_cast<std::int64_t>(sizeof(Int)), 64);
inline void prefetch_line(const std::uint8_t* line) {
  constexpr int kToL2 = 1;
  __builtin_prefetch(line, 0, kToL2);
}
// Words of a segment of fewer columns: codes past the end are left out. What is read there instead
// meets inputs that are zero.
template <typename Format>
constexpr std::int64_t words_of(int columns) {
  if constexpr (kIsPlain<Format>) {
    return divide_up(columns, 2);
  } else if constexpr (Format::block_size == kSegment) {
    return kWords<Format>;
  } else {
    constexpr int kBlocks = kSegment / Format::block_size;
    constexpr int kCodes = static_cast<int>(sizeof(typename Format::Block)) - Format::header_bytes;
    return kBlocks * Format::header_bytes / 4 + columns / Format::block_size * (kCodes / 4);
  }
}

// Words lie in the order in which `unpack_rows` first needs them, as memory is read ahead only where
// it is read in order; a format whose blocks have another order says where each word goes.
template <typename Format>
constexpr int place_of(int word) {
  if constexpr (requires { Format::place_of(word); }) return Format::place_of(word);
  return word;
}

// Gathers the words of kLanes rows of `kBytes`, `stride` apart. Nothing past them is read.
template <int kBytes>
void gather_words(const std::uint8_t* first, std::int64_t stride, Int* words) {
  constexpr int kWhole = kBytes / 16;
  for (int i = 0; i < kWhole; ++i) simd::load_lines(first + 16 * i, stride, words + 4 * i);
  if constexpr (kBytes % 16 != 0) {
    // The last 16 bytes, without those that are there already.
    constexpr int kSkip = 16 - kBytes % 16;
    constexpr int kShift = kSkip % 4 * 8;
    Int last[5] = {};
    simd::load_lines(first + kBytes - 16, stride, last);
    for (int i = kSkip / 4; i < 4; ++i) {
      Int& word = words[4 * kWhole + i - kSkip / 4];
      if constexpr (kShift == 0) {
        word = last[i];
      } else {
        word = simd::shift_right_logical<kShift>(last[i]) | (last[i + 1] << (32 - kShift));
      }
    }
  }
}

// The bytes of a segment of one row, in the order of its words: of blocks of 32 first what precedes
// the codes of all of them, then their codes, so that codes begin at a word.
template <typename Format>
void order_bytes(const Weight& weight, std::int64_t row, std::int64_t index, std::uint8_t* bytes) {
  PaddedSegment<Format> padded;
  const auto* blocks = segment_blocks<Format>(weight, row, index, padded);
  if constexpr (kIsSpelled<Format>) {
    const auto spelled = formats::spell<Format>(*blocks);
    std::memcpy(bytes, &spelled, sizeof(spelled));
  } else if constexpr (Format::block_size == kSegment || kIsPlain<Format>) {
    std::memcpy(bytes, blocks, kSegmentBytes<Format>);
  } else {
    constexpr int kBlocks = kSegment / Format::block_size;
    constexpr int kHeader = Format::header_bytes;
    constexpr int kCodes = static_cast<int>(sizeof(typename Format::Block)) - kHeader;
    static_assert(kBlocks * kHeader % 4 == 0 && kCodes % 4 == 0);
    for (int i = 0; i < kBlocks; ++i) {
      const auto* block = reinterpret_cast<const std::uint8_t*>(blocks + i);
      std::memcpy(bytes + i * kHeader, block, kHeader);
      std::memcpy(bytes + kBlocks * kHeader + i * kCodes, block + kHeader, kCodes);
    }
  }
}

// The words of kLanes rows from `row` on, segment by segment; rows past the end repeat the last.
template <typename Format>
class RowWords {
 public:
  RowWords(const Weight& weight, std::int64_t row, std::int64_t row_end)
      : weight_(weight), row_(row), last_(std::min(row_end - row, std::int64_t{kLanes}) - 1) {}

  // Asks for a segment of interleaved weights. Harmless past the end.
  void prefetch(std::int64_t index) const {
    if (!weight_.is_interleaved) return;
    const std::uint8_t* segment = weight_.blocks + row_ * weight_.row_bytes +
                                  index * kWords<Format> * static_cast<std::int64_t>(sizeof(Int));
    for (std::int64_t i = 0; i < kSegmentLines<Format>; ++i) prefetch_line(segment + 64 * i);
  }

  // Valid until the next call.
  const Int* segment(std::int64_t index) {
    if (weight_.is_interleaved) {
      return reinterpret_cast<const Int*>(weight_.blocks + row_ * weight_.row_bytes) +
             index * kWords<Format>;
    }
    constexpr int kBytes = kSegmentBytes<Format>;
    Int gathered[kPaddedBytes<Format> / 4];
    for (int lane = 0; lane <= last_; ++lane) prefetch_segment(weight_, row_ + lane, index + 1);
    const bool is_whole = kIsPlain<Format> ? segment_columns(weight_.columns, index) == kSegment
                                           : Format::block_size == kSegment;
    if (is_whole && !kIsSpelled<Format> && last_ == kLanes - 1) {
      gather_words<kBytes>(weight_.blocks + row_ * weight_.row_bytes + index * kBytes,
                           weight_.row_bytes, gathered);
    } else {
      constexpr int kStride = kPaddedBytes<Format>;
      // Zeros past a row's bytes, so that memory is the same each time.
      alignas(64) std::uint8_t ordered[kLanes * kStride] = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        order_bytes<Format>(weight_, row_ + std::min<std::int64_t>(lane, last_), index,
                            ordered + lane * kStride);
      }
      gather_words<kStride>(ordered, kStride, gathered);
    }
#pragma GCC unroll 72
    for (int i = 0; i < kWords<Format>; ++i) words_[place_of<Format>(i)] = gathered[i];
    return words_;
  }

 private:
  const Weight& weight_;
  std::int64_t row_;
  std::int64_t last_;
  Int words_[kWords<Format>];
};

template <typename Format>
std::int64_t interleaved_row_bytes(std::int64_t columns) {
  static_assert(kWords<Format> * sizeof(Int) <= kInterleavedMargin);
  const std::int64_t last = segments_of(columns) - 1;
  return (last * kWords<Format> + words_of<Format>(segment_columns(columns, last))) * 4;
}

// Interleaves the rows [row_begin, row_end) of a stored weight; row_begin is a multiple of kLanes.
template <typename Format>
void interleave(const Weight& weight, std::int64_t row_begin, std::int64_t row_end,
                std::uint8_t* interleaved) {
  const std::int64_t segments = segments_of(weight.columns);
  const std::int64_t row_bytes = interleaved_row_bytes<Format>(weight.columns);
  for (std::int64_t row = row_begin; row < row_end; row += kLanes) {
    RowWords<Format> words(weight, row, row_end);
    auto* to = reinterpret_cast<Int*>(interleaved + row * row_bytes);
    for (std::int64_t index = 0; index < segments; ++index) {
      const int columns = segment_columns(weight.columns, index);
      std::copy_n(words.segment(index), words_of<Format>(columns), to + index * kWords<Format>);
    }
  }
}

// Of a format that lies in memory as `SpelledAs` does: the kernel of that one.
template <typename Format>
constexpr std::optional<MatmulKernel> spelled_kernel(std::optional<MatmulKernel> kernel) {
  if (kernel) kernel->interleave = interleave<Format>;
  return kernel;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
