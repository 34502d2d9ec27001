// SPDX-License-Identifier: Apache-2.0
#include "engine/integer_matrix.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/cache_layout.h"

namespace lilliput::engine {
namespace {

using kernels::kPanelRows;
using kernels::kRowPadding;

// Columns whose largest products fit int32: 255 * 255 * 2^15.
constexpr std::int64_t kMostColumns = 1 << 15;
// The kernel takes so many columns of a group at a time.
constexpr std::int64_t kGroupStep = 16;

// [rows][groups] -> [panels][groups][16]
template <typename T>
const T* in_panels(const std::vector<T>& values, std::int64_t rows, std::int64_t groups,
                   Arena& arena) {
  const std::int64_t padded = kernels::round_up(rows, kRowPadding);
  T* to = reinterpret_cast<T*>(arena.take(static_cast<std::size_t>(padded * groups) * sizeof(T)));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      to[(row / kPanelRows * groups + group) * kPanelRows + row % kPanelRows] =
          values[static_cast<std::size_t>(row * groups + group)];
    }
  }
  return to;
}

}  // namespace

std::uint8_t* Arena::take(std::size_t bytes) {
  constexpr std::size_t kBlock = std::size_t{1} << 26;
  const std::size_t lines = (bytes + 63) / 64 * 64;
  if (blocks_.empty() || used_ + lines > blocks_.back().bytes()) {
    blocks_.emplace_back(std::max(lines, kBlock));
    used_ = 0;
  }
  std::uint8_t* piece = blocks_.back().as<std::uint8_t>() + used_;
  used_ += lines;
  taken_ += lines;
  return piece;
}

IntegerMatrix::IntegerMatrix(std::string name, std::int64_t rows, std::int64_t columns,
                             std::span<const std::uint8_t> codes,
                             const std::array<std::int8_t, 256>& levels, std::vector<float> scale,
                             std::vector<std::int32_t> zero_point)
    : name_(std::move(name)),
      rows_(rows),
      columns_(columns),
      groups_(rows < 1 ? 0 : static_cast<std::int64_t>(scale.size()) / rows),
      codes_(codes.data()),
      levels_(levels),
      scale_(std::move(scale)),
      zero_point_(std::move(zero_point)) {
  const bool is_cut = groups_ > 1 && columns % (kGroupStep * groups_) != 0;
  if (rows < 1 || columns < 1 || groups_ < 1 || is_cut ||
      static_cast<std::int64_t>(codes.size()) != rows * columns ||
      static_cast<std::int64_t>(scale_.size()) != rows * groups_ ||
      (!zero_point_.empty() && zero_point_.size() != scale_.size())) {
    throw std::invalid_argument(name_ + ": codes, scales and zero points do not fit a matrix of [" +
                                std::to_string(rows) + ", " + std::to_string(columns) + "]");
  }
}

void IntegerMatrix::decode_row(std::int64_t row, float* values) const {
  const std::uint8_t* codes = codes_ + row * columns_;
  const std::int64_t together = columns_ / groups_;
  for (std::int64_t group = 0; group < groups_; ++group) {
    const auto index = static_cast<std::size_t>(row * groups_ + group);
    const float scale = scale_[index];
    const std::int32_t zero_point = zero_point_.empty() ? 0 : zero_point_[index];
    for (std::int64_t i = group * together; i < (group + 1) * together; ++i) {
      values[i] = scale * static_cast<float>(levels_[codes[i]] - zero_point);
    }
  }
}

std::vector<std::int32_t> IntegerMatrix::sums_for(const kernels::IntegerInput& input,
                                                  Arena& arena) {
  if (columns_ > kMostColumns) {
    throw std::invalid_argument(name_ + ": rows of " + std::to_string(columns_) +
                                " columns; sums of integers hold " + std::to_string(kMostColumns));
  }
  if (input.groups > 1 &&
      (columns_ % (kGroupStep * input.groups) != 0 || (groups_ > 1 && groups_ != input.groups))) {
    throw std::invalid_argument(name_ + ": groups of inputs and weights do not fit each other");
  }
  if (weight_.panels == nullptr) lay_out(arena);
  const std::int64_t groups = std::max(groups_, input.groups);
  std::vector<std::int32_t> sums(
      static_cast<std::size_t>(kernels::round_up(rows_, kRowPadding) * groups));
  kernels::integer_sums(weight_, groups, sums.data());
  return sums;
}

void IntegerMatrix::lay_out(Arena& arena) {
  const std::int64_t quads = (columns_ + 3) / 4;
  auto* lines = reinterpret_cast<std::int8_t*>(
      arena.take(static_cast<std::size_t>(kernels::round_up(rows_, kRowPadding) * quads * 4)));
  for (std::int64_t row = 0; row < rows_; ++row) {
    const std::uint8_t* codes = codes_ + row * columns_;
    std::int8_t* to = lines + (row / kPanelRows * quads * kPanelRows + row % kPanelRows) * 4;
    for (std::int64_t i = 0; i < columns_; ++i) {
      to[i / 4 * kPanelRows * 4 + i % 4] = levels_[codes[i]];
    }
  }
  weight_ = {rows_,
             columns_,
             columns_ / groups_,
             groups_,
             lines,
             in_panels(scale_, rows_, groups_, arena),
             zero_point_.empty() ? nullptr : in_panels(zero_point_, rows_, groups_, arena)};
}

}  // namespace lilliput::engine
