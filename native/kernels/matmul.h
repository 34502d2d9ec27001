// SPDX-License-Identifier: Apache-2.0
// The border between the engine and the matrix kernels: y[token][row] = sum_k x[token][k] *
// weight[row][k].
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/format.h"
#include "kernels/instruction_sets.h"

namespace lilliput::kernels {

struct Weight {
  formats::FormatId format;
  std::int64_t rows;
  std::int64_t columns;
  const std::uint8_t* blocks;  // rows of row_bytes bytes, memory-mapped, read-only, any alignment
  std::int64_t row_bytes;
  bool is_interleaved = false;  // laid out by a kernel's `interleave`, 64-byte aligned
};

// How a kernel wants its input. Linears that read the same input with the same layout share one
// preparation: its bytes depend on the layout, tokens, columns and instruction set alone.
enum class InputLayout : std::uint8_t {
  f32,          // floats: F32 weights, and every weight with --activations f32
  halves,       // F16 and BF16 weights: floats, of more than 8 tokens codes of 16 bits where faster
  int8_32,      // int8 codes with one float scale per 32 columns
  int8_scaled,  // int8 codes for weights with integer group scales; differs by their grid
};

// Kernels of one instruction set for one weight format.
struct MatmulKernel {
  InputLayout input;
  // Bytes of prepared input for `tokens` rows of `columns` floats, 64-byte aligned by the caller.
  std::size_t (*prepared_bytes)(std::int64_t tokens, std::int64_t columns);
  // The layout of prepared input depends on `tokens`, the same for prepare and multiply.
  // Prepares tokens [token_begin, token_end): callable from several threads on disjoint ranges
  // whose borders are multiples of `token_tile`.
  void (*prepare)(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);
  // Computes rows [row_begin, row_end) for all tokens; borders are multiples of `row_tile` (or the
  // end). `scratch` is `scratch_bytes` of this thread's own, 64-byte aligned.
  void (*multiply)(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch);
  std::int64_t token_tile;
  std::int64_t row_tile;
  std::size_t (*scratch_bytes)(std::int64_t columns, std::int64_t tokens);
  // Of kernels for interleaved weights, otherwise null: bytes of a row, a number of rows that is a
  // multiple of kMostLanes understood, and what fills the rows [row_begin, row_end) from a weight as
  // it is stored; row_begin is a multiple of kMostLanes.
  std::int64_t (*interleaved_row_bytes)(std::int64_t columns) = nullptr;
  void (*interleave)(const Weight& stored, std::int64_t row_begin, std::int64_t row_end,
                     std::uint8_t* interleaved) = nullptr;
};
// Bytes past interleaved rows that may be read, whatever they are.
inline constexpr std::size_t kInterleavedMargin = 8192;
// Rows that are interleaved with each other, on the widest instruction set.
inline constexpr std::int64_t kMostLanes = 16;

// The kernel for a format; exact_input asks for float32 activations. Never null: every format that
// decodes has the generic path (decode a panel of rows to float32, multiply). Throws
// std::invalid_argument where !is_available(isa).
const MatmulKernel& matmul_kernel(formats::FormatId format, Isa isa, bool exact_input);
// The kernel that wants the rows of a weight interleaved in memory, with int8 activations; null
// where the format has none.
const MatmulKernel* interleaved_kernel(formats::FormatId format, Isa isa);

}  // namespace lilliput::kernels
