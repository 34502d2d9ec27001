// SPDX-License-Identifier: Apache-2.0
// Linear layers in integer arithmetic: y = bias + sum over groups of scales * sum of
// (input code - its zero point) * (weight code - its zero point). The inner sums are exact int32;
// scales are multiplied in a fixed order, so that every instruction set, thread count and the array
// code in Python (src/lilliput/activations, src/lilliput/torch_backend) give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"

namespace lilliput::kernels {

// Rows are stored 16 at a time, as lanes: for each run of four columns one line of 64 bytes, four
// codes of each row. A line feeds one dot instruction of AVX-512, two of AVX2.
inline constexpr int kPanelRows = 16;
// Rows are filled up to a multiple of this: AVX-512 takes two panels at a time.
inline constexpr int kRowPadding = 32;

struct IntegerWeight {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t group;         // columns that share a scale, a multiple of 16; columns for one a row
  std::int64_t groups;        // scales of a row
  const std::int8_t* panels;  // [panels][quads][16][4]; what fills up rows and columns is 0
  const float* scale;         // [panels][groups][16]
  const std::int32_t* zero_point;  // [panels][groups][16], or null where all are 0
};

enum class NumberType : std::uint8_t { f32, bf16 };

// How inputs become codes 0..255. Per token, or per token and group of columns:
//   symmetric   scale = largest magnitude / top, code = round(x / scale) + zero_point
//   otherwise   scale = (max(x, 0) - min(x, 0)) / top, zero_point = round(-min / scale)
// Static ones have the given scale and zero point. Codes are cut to lowest..highest. A token that
// holds an infinity or a NaN gives NaN.
struct IntegerInput {
  bool is_symmetric;
  bool is_static;
  float top;            // steps from zero, or from end to end, of the range
  float lowest;         // of the codes
  float highest;        // of the codes
  float scale;          // of static inputs
  float zero_point;     // of static and symmetric inputs
  std::int64_t groups;  // 1, or as many as cut the columns into equal groups
};

struct Activations {
  const void* values;  // [tokens][stride]
  NumberType type;
  std::int64_t tokens;
  std::int64_t columns;
  std::int64_t stride;
};

// What becomes of results before they are stored. gelu errs by less than 2e-5: a step of the 8 bits
// that results become next is a hundred times as much.
enum class Finish : std::uint8_t { none, relu, gelu };

struct Output {
  void* values;  // [tokens][stride]
  NumberType type;
  std::int64_t stride;
  const float* bias;  // [rows], or null
  Finish finish = Finish::none;
};

// Kernels of one instruction set.
struct IntegerKernel {
  // Bytes of prepared input, 64-byte aligned by the caller; `group` as the kernel will cut columns.
  std::size_t (*prepared_bytes)(std::int64_t tokens, std::int64_t columns, std::int64_t groups);
  // Prepares tokens [token_begin, token_end); the last call also fills the tile up.
  // `groups`: of the weight or of the input, whichever has more.
  void (*prepare)(const Activations& x, const IntegerInput& input, std::int64_t groups,
                  std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);
  // Rows [row_begin, row_end), whose borders are multiples of `row_tile` or the end.
  void (*multiply)(const IntegerWeight& weight, const IntegerInput& input, const std::int32_t* sums,
                   const std::uint8_t* prepared, std::int64_t tokens, const Output& y,
                   std::int64_t row_begin, std::int64_t row_end);
  std::int64_t token_tile;
  std::int64_t row_tile;
};

// Throws std::invalid_argument where !is_available(isa).
const IntegerKernel& integer_kernel(Isa isa);

// Sums of (code - zero point) of every row and group, [panels][groups][16]: what an input's zero
// point is multiplied by. `groups`: of the weight or of the input, whichever has more.
void integer_sums(const IntegerWeight& weight, std::int64_t groups, std::int32_t* sums);

}  // namespace lilliput::kernels
