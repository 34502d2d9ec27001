// SPDX-License-Identifier: Apache-2.0
// lilliput._native: loops over the columns of one block, for the solvers that work with Hessians.
#include "kernels/column_loops.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/thread_pool.h"

namespace nb = nanobind;

namespace {

using namespace nb::literals;
using namespace lilliput;

using Numbers = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ascending = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using LevelCodes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// Rows may lie apart; the floats of a row may not.
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Written = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Codes = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::device::cpu>;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("column loops: " + what);
}

template <typename Array>
std::string shape_of(const Array& array) {
  std::string text = "[";  // appended to: gcc 12 warns about operator+ (GCC bug 105651)
  text.append(std::to_string(array.shape(0))).append(", ").append(std::to_string(array.shape(1)));
  return text.append("]");
}

// Groups' numbers and levels, kept alive with the arrays they lie in.
class Lines {
 public:
  Lines(Numbers scale, Numbers inverse, std::optional<Numbers> offset,
        std::optional<Numbers> zero_point, std::int64_t group, Ascending numbers, LevelCodes codes)
      : scale_(std::move(scale)),
        inverse_(std::move(inverse)),
        offset_(std::move(offset)),
        zero_point_(std::move(zero_point)),
        numbers_(std::move(numbers)),
        codes_(std::move(codes)),
        group_(group) {
    for (const Numbers* other :
         {&inverse_, offset_ ? &*offset_ : &scale_, zero_point_ ? &*zero_point_ : &scale_}) {
      require(other->shape(0) == scale_.shape(0) && other->shape(1) == scale_.shape(1),
              "scales are " + shape_of(scale_) + ", other numbers " + shape_of(*other));
    }
    const std::size_t n = numbers_.shape(0);
    require(n >= 1 && n <= 256 && codes_.shape(0) == n, "1 to 256 levels with a code each");
    require(group >= 1, "a group has at least one column");
    for (std::size_t i = 0; i + 1 < n; ++i) {
      const float low = numbers_(i), high = numbers_(i + 1);
      require(low < high, "levels must ascend");
      midpoints_.push_back((high + low) * 0.5f);
      is_run_ = is_run_ && high - low == 1.0f && codes_(i + 1) == codes_(i) + 1;
    }
    // Rounding to whole numbers is the nearest level of no other run.
    is_run_ = is_run_ && numbers_(0) == static_cast<float>(static_cast<int>(numbers_(0)));
  }

  kernels::GroupLines lines(std::int64_t rows, std::int64_t columns) const {
    const auto own = static_cast<std::int64_t>(scale_.shape(0));
    const auto groups = static_cast<std::int64_t>(scale_.shape(1));
    require(own == 1 || own == rows, "scales of " + std::to_string(own) + " rows for " +
                                         std::to_string(rows) + " rows of weights");
    require(groups * group_ >= columns, std::to_string(groups) + " groups of " +
                                            std::to_string(group_) + " columns for " +
                                            std::to_string(columns));
    return {scale_.data(),
            inverse_.data(),
            offset_ ? offset_->data() : nullptr,
            zero_point_ ? zero_point_->data() : nullptr,
            own == 1 ? 0 : groups,
            groups,
            group_};
  }

  kernels::ColumnLevels levels() const {
    return {numbers_.data(), midpoints_.data(), codes_.data(), static_cast<int>(numbers_.shape(0)),
            is_run_};
  }

 private:
  Numbers scale_, inverse_;
  std::optional<Numbers> offset_, zero_point_;
  Ascending numbers_;
  LevelCodes codes_;
  std::vector<float> midpoints_;
  std::int64_t group_;
  bool is_run_ = true;
};

template <typename Array>
auto rows_of(const Array& array, std::int64_t rows, std::int64_t columns, const char* what) {
  require(static_cast<std::int64_t>(array.shape(0)) == rows &&
              static_cast<std::int64_t>(array.shape(1)) == columns,
          std::string(what) + " is " + shape_of(array) + ", expected [" + std::to_string(rows) +
              ", " + std::to_string(columns) + "]");
  require(columns <= 1 || array.stride(1) == 1, std::string(what) + ": a row must be contiguous");
  return std::pair{array.data(), array.stride(0)};
}

// 64-byte aligned floats.
class Floats64 {
 public:
  explicit Floats64(std::size_t n)
      : data_(static_cast<float*>(
            ::operator new(std::max<std::size_t>(n, 1) * sizeof(float), std::align_val_t{64}))) {}
  ~Floats64() { ::operator delete(data_, std::align_val_t{64}); }
  Floats64(const Floats64&) = delete;
  Floats64& operator=(const Floats64&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

// Calls run(loops, begin, end, scratch) on tiles of rows, each by one thread.
template <typename Run>
void over_row_tiles(const kernels::ColumnBlock& block, const std::string& isa, int threads,
                    const Run& run) {
  const kernels::ColumnLoops& loops = kernels::column_loops(kernels::isa_by_name(isa));
  const nb::gil_scoped_release release;
  const std::size_t bytes = (loops.scratch_bytes(block.columns, block.lines.groups) + 63) / 64 * 64;
  const std::int64_t tiles = (block.rows + loops.row_tile - 1) / loops.row_tile;
  engine::ThreadPool::Lease lease(engine::ThreadPool::shared(),
                                  static_cast<int>(std::min<std::int64_t>(threads, tiles)));
  const Floats64 scratch(static_cast<std::size_t>(lease.threads()) * bytes / sizeof(float));
  lease.parallel_for(tiles, [&](std::int64_t tile, int thread) {
    const std::int64_t begin = tile * loops.row_tile;
    auto* own =
        reinterpret_cast<std::uint8_t*>(scratch.data()) + static_cast<std::size_t>(thread) * bytes;
    run(loops, begin, std::min(block.rows, begin + loops.row_tile), own);
  });
}

kernels::ColumnBlock block_of(const Lines& lines, const Floats& matrix, const Codes& codes,
                              const Floats64& panels) {
  const auto rows = static_cast<std::int64_t>(codes.shape(0));
  const auto columns = static_cast<std::int64_t>(codes.shape(1));
  const auto [data, stride] = rows_of(matrix, columns, columns, "matrix");
  const auto [code_data, code_stride] = rows_of(codes, rows, columns, "codes");
  kernels::pack_panels({data, stride}, columns, panels.data());
  return {rows,      columns,    lines.lines(rows, columns), lines.levels(), panels.data(),
          code_data, code_stride};
}

void feed_back_columns(const Lines& lines, const Order& order, const Floats& target,
                       const Floats& original, const Floats& feedback, const Codes& codes,
                       const Written& error, int threads, const std::string& isa) {
  const Floats64 panels(kernels::panel_floats(static_cast<std::int64_t>(codes.shape(1))));
  const kernels::ColumnBlock block = block_of(lines, feedback, codes, panels);
  require(static_cast<std::int64_t>(order.shape(0)) == block.columns, "order of each column");
  for (std::size_t place = 0; place < order.shape(0); ++place) {
    require(order(place) >= 0 && order(place) < block.columns, "order within the block");
  }
  const auto [wanted, wanted_stride] = rows_of(target, block.rows, block.columns, "target");
  const auto [given, given_stride] = rows_of(original, block.rows, block.columns, "original");
  const auto [left, left_stride] = rows_of(error, block.rows, block.columns, "error");
  const kernels::FeedbackBlock work{
      block, order.data(), {wanted, wanted_stride}, {given, given_stride}, {left, left_stride}};
  over_row_tiles(block, isa, threads,
                 [&](const kernels::ColumnLoops& loops, std::int64_t begin, std::int64_t end,
                     std::uint8_t* scratch) { loops.feed_back(work, begin, end, scratch); });
}

void descend_columns(const Lines& lines, const Floats& hessian, const Floats& gradient,
                     const Floats& values, const Codes& codes, const Written& moves, int threads,
                     const std::string& isa) {
  const Floats64 panels(kernels::panel_floats(static_cast<std::int64_t>(codes.shape(1))));
  const kernels::ColumnBlock block = block_of(lines, hessian, codes, panels);
  std::vector<float> diagonal;
  for (std::int64_t i = 0; i < block.columns; ++i) {
    diagonal.push_back(hessian(static_cast<std::size_t>(i), static_cast<std::size_t>(i)));
  }
  const auto [slope, slope_stride] = rows_of(gradient, block.rows, block.columns, "gradient");
  const auto [held, held_stride] = rows_of(values, block.rows, block.columns, "values");
  const auto [moved, moved_stride] = rows_of(moves, block.rows, block.columns, "moves");
  const kernels::DescentBlock work{
      block, diagonal.data(), {slope, slope_stride}, {held, held_stride}, {moved, moved_stride}};
  over_row_tiles(block, isa, threads,
                 [&](const kernels::ColumnLoops& loops, std::int64_t begin, std::int64_t end,
                     std::uint8_t* scratch) { loops.descend(work, begin, end, scratch); });
}

}  // namespace

void bind_column_loops(nb::module_& module) {
  nb::class_<Lines>(module, "GroupLines",
                    "value = scale * (level - zero_point) + offset for groups of columns.")
      .def(nb::init<Numbers, Numbers, std::optional<Numbers>, std::optional<Numbers>, std::int64_t,
                    Ascending, LevelCodes>(),
           nb::kw_only(), "scale"_a, "inverse"_a, "offset"_a.none(), "zero_point"_a.none(),
           "group"_a, "numbers"_a, "codes"_a,
           "scale, inverse, offset, zero_point: [rows or 1, groups] float32; group: columns of a "
           "group; numbers: levels, ascending; codes: uint8 code of each.");
  module.def("feed_back_columns", &feed_back_columns, nb::kw_only(), "lines"_a, "order"_a,
             "target"_a.noconvert(), "original"_a.noconvert(), "feedback"_a.noconvert(),
             "codes"_a.noconvert(), "error"_a.noconvert(), "threads"_a = 1, "isa"_a = "",
             "Decide one block of columns under error feedback. target, original, error [rows, "
             "columns] and feedback [columns, columns] in the order of decisions; order: int32, "
             "the column of `codes` [rows, columns] that each place decides. Writes codes and "
             "error. Rows may be strided. The results do not depend on threads.");
  module.def("descend_columns", &descend_columns, nb::kw_only(), "lines"_a, "hessian"_a.noconvert(),
             "gradient"_a.noconvert(), "values"_a.noconvert(), "codes"_a.noconvert(),
             "moves"_a.noconvert(), "threads"_a = 1, "isa"_a = "",
             "One pass of coordinate descent over one block of columns. hessian [columns, "
             "columns]; gradient, values [rows, columns] before; changes codes where that lowers "
             "the loss and writes by how much their values move.");
}
