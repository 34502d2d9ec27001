// SPDX-License-Identifier: Apache-2.0
// A matrix of integers under scales, as a Program holds it: codes as the file has them for looking
// rows up, and lines of sixteen rows for the kernel once a linear multiplies with it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/memory.h"
#include "kernels/integer_matmul.h"

namespace lilliput::engine {

// Zero memory in few large pieces, which huge pages back: a matrix of a megabyte alone would get
// none, and every pass would look up thousands of small ones.
class Arena {
 public:
  // 64-byte aligned.
  std::uint8_t* take(std::size_t bytes);
  std::size_t bytes() const { return taken_; }

 private:
  std::vector<Memory> blocks_;
  std::size_t used_ = 0;  // of the last block
  std::size_t taken_ = 0;
};

class IntegerMatrix {
 public:
  // value = scale * (levels[code] - zero point). codes: [rows][columns], owned by the caller; scale
  // and zero_point (empty: all 0): [rows][groups]. Throws std::invalid_argument.
  IntegerMatrix(std::string name, std::int64_t rows, std::int64_t columns,
                std::span<const std::uint8_t> codes, const std::array<std::int8_t, 256>& levels,
                std::vector<float> scale, std::vector<std::int32_t> zero_point);

  const std::string& name() const { return name_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t groups() const { return groups_; }
  // float32 values of one row.
  void decode_row(std::int64_t row, float* values) const;

  // Lays the matrix out for the kernel in memory of `arena`, if it is not yet, and gives the sums
  // that the kernel needs with inputs of this kind. Throws std::invalid_argument where the groups do
  // not fit.
  std::vector<std::int32_t> sums_for(const kernels::IntegerInput& input, Arena& arena);
  const kernels::IntegerWeight& weight() const { return weight_; }

 private:
  void lay_out(Arena& arena);

  std::string name_;
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t groups_;
  const std::uint8_t* codes_;
  std::array<std::int8_t, 256> levels_;
  std::vector<float> scale_;
  std::vector<std::int32_t> zero_point_;
  kernels::IntegerWeight weight_{};
};

}  // namespace lilliput::engine
