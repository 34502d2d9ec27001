// SPDX-License-Identifier: Apache-2.0
// Loops that decide the codes of a matrix column after column, inside one block of columns: error
// feedback and coordinate descent. Their meaning is src/lilliput/methods/feedback.py and
// descent.py; what lies between blocks is matrix products, which are done there.
//
// Rows never look at each other. The result of a row does not depend on which rows are with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"

namespace lilliput::kernels {

// What a column's codes stand for, of each group of each row:
//   value = scale * (level - zero_point) + offset
// with the level nearest to (wanted - offset) * inverse + zero_point, ties to even integers of a
// run and to the lower level of a table.
// Numbers are [rows, groups], row_stride floats from row to row, 0 where all rows share them.
struct GroupLines {
  const float* scale;
  const float* inverse;
  const float* offset;      // null: none
  const float* zero_point;  // null: none; integers
  std::int64_t row_stride;
  std::int64_t groups;
  std::int64_t group;  // columns of a group
};

// Levels that may be written, ascending, and the code of each.
struct ColumnLevels {
  const float* numbers;
  const float* midpoints;  // [n - 1], where the nearest number changes
  const std::uint8_t* codes;
  int n;
  bool is_run;  // consecutive integers with consecutive codes
};

// Rows of floats, `stride` floats apart.
struct ConstRows {
  const float* data;
  std::int64_t stride;
};
struct MutableRows {
  float* data;
  std::int64_t stride;
};

// What both loops share. Matrix [columns, columns]: what the move of column i does to column j > i
// is entry ij.
struct ColumnBlock {
  std::int64_t rows;
  std::int64_t columns;
  GroupLines lines;
  ColumnLevels levels;
  const float* panels;  // the matrix as `pack_panels` leaves it
  std::uint8_t* codes;  // [rows, columns], in the order of storage
  std::int64_t code_stride;
};

// Columns come in the order of decisions; column `order[place]` of the block is decided at `place`.
//   wanted_j = target_j - sum_i<j error_i matrix_ij,  error_j = value_j - original_j
struct FeedbackBlock {
  ColumnBlock block;
  const std::int32_t* order;
  ConstRows target;
  ConstRows original;
  MutableRows error;
};

// Columns come in the order of storage. Moves that lower the loss are made:
//   gradient_j += sum_i<j move_i matrix_ij,  wanted_j = values_j - gradient_j / diagonal_j
// and (2 gradient_j + move_j diagonal_j) move_j < 0. `codes` holds the codes of `values`.
struct DescentBlock {
  ColumnBlock block;
  const float* diagonal;
  ConstRows gradient;
  ConstRows values;
  MutableRows moves;
};

// Columns of the matrix that are worked on together.
inline constexpr std::int64_t kPanelColumns = 4;
// Floats of packed panels, and the packing: panel p holds columns 4 p … of all rows side by side.
std::size_t panel_floats(std::int64_t columns);
void pack_panels(const ConstRows& matrix, std::int64_t columns, float* panels);

struct ColumnLoops {
  std::int64_t row_tile;
  // Bytes of working memory for blocks of so many columns and groups, 64-byte aligned by the
  // caller.
  std::size_t (*scratch_bytes)(std::int64_t columns, std::int64_t groups);
  // Rows [begin, end), at most row_tile of them.
  void (*feed_back)(const FeedbackBlock& work, std::int64_t begin, std::int64_t end,
                    std::uint8_t* scratch);
  void (*descend)(const DescentBlock& work, std::int64_t begin, std::int64_t end,
                  std::uint8_t* scratch);
};

const ColumnLoops& column_loops(Isa isa);

}  // namespace lilliput::kernels
