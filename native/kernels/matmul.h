// SPDX-License-Identifier: Apache-2.0
// The border between the engine and the matrix kernels: y[token][row] = sum_k x[token][k] *
// weight[row][k].
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/format.h"

namespace lilliput::kernels {

// Instruction sets a kernel is compiled for. Forced in tests, otherwise the best this machine has.
enum class Isa : std::uint8_t { scalar, avx2, avx512_vnni };

struct Weight {
  formats::FormatId format;
  std::int64_t rows;
  std::int64_t columns;
  const std::uint8_t* blocks;  // rows of row_bytes bytes, memory-mapped, read-only, any alignment
  std::int64_t row_bytes;
};

// How a kernel wants its input. Linears that read one input and agree on the layout share one
// preparation.
enum class InputLayout : std::uint8_t {
  f32,       // float rows as they are: F32/F16/BF16 weights, formats without an integer kernel,
             // --activations f32
  int8_32,   // int8 codes with one scale per 32
  int8_256,  // int8 codes with one scale per 256 and sums per 16/32
};

// Kernels of one instruction set for one weight format.
struct MatmulKernel {
  InputLayout input;
  // Bytes of prepared input for `tokens` rows of `columns` floats, 64-byte aligned by the caller.
  std::size_t (*prepared_bytes)(std::int64_t tokens, std::int64_t columns);
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
};

// Whether this machine (and build) can run kernels of an instruction set; the best one it can.
bool is_available(Isa isa);
Isa best_isa();
// The kernel for a format; exact_input asks for float32 activations. Never null: every format that
// decodes has the generic path (decode a panel of rows to float32, multiply). Throws
// std::invalid_argument where !is_available(isa).
const MatmulKernel& matmul_kernel(formats::FormatId format, Isa isa, bool exact_input);

}  // namespace lilliput::kernels
