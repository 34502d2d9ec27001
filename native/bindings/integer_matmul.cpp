// SPDX-License-Identifier: Apache-2.0
// lilliput._native: linear layers in integer arithmetic on arrays of NumPy or PyTorch, in place.
// std::invalid_argument is ValueError.
#include "kernels/integer_matmul.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <map>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/team.h"

namespace nb = nanobind;

namespace {

using namespace nb::literals;
using namespace lilliput;
using kernels::IntegerInput;
using kernels::NumberType;

using Panels = nb::ndarray<const std::int8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Points = nb::ndarray<const std::int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using Result = nb::ndarray<nb::ndim<2>, nb::device::cpu>;

// Products of one input, or rows of one weight, below which a second thread costs more than it
// brings.
constexpr std::int64_t kSerialValues = 1 << 14;
constexpr std::int64_t kSerialProducts = 1 << 19;
// Columns whose largest products fit int32: 255 * 255 * 2^15.
constexpr std::int64_t kMostColumns = 1 << 15;

NumberType number_type(const nb::dlpack::dtype& type) {
  if (type == nb::dtype<float>()) return NumberType::f32;
  // NumPy has no bfloat16: its bits come as uint16.
  if (type == nb::dtype<std::uint16_t>()) return NumberType::bf16;
  throw std::invalid_argument("inputs and results are float32, or bfloat16 as uint16");
}

// Working memory of the calling thread, kept: a large block fresh from the system costs a page
// fault for every 4 KB.
std::uint8_t* scratch(std::size_t bytes) {
  struct Free {
    void operator()(std::uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<std::uint8_t, Free> block;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    block.reset(static_cast<std::uint8_t*>(::operator new(bytes, std::align_val_t{64})));
    size = bytes;
  }
  return block.get();
}

class BoundWeight {
 public:
  BoundWeight(Panels panels, Scales scale, std::optional<Points> zero_point, std::int64_t rows,
              std::int64_t columns)
      : panels_(std::move(panels)), scale_(std::move(scale)), zero_point_(std::move(zero_point)) {
    const auto groups = static_cast<std::int64_t>(scale_.shape(1));
    const std::int64_t n_panels = (rows + kernels::kRowPadding - 1) / kernels::kRowPadding *
                                  (kernels::kRowPadding / kernels::kPanelRows);
    const std::int64_t quads = (columns + 3) / 4;
    const auto has_shape = [](const auto& array, std::initializer_list<std::int64_t> shape) {
      std::size_t axis = 0;
      return std::all_of(shape.begin(), shape.end(), [&](std::int64_t n) {
        return static_cast<std::int64_t>(array.shape(axis++)) == n;
      });
    };
    if (rows < 1 || columns < 1 || columns > kMostColumns || groups < 1 ||
        (groups > 1 && columns % (16 * groups) != 0) ||
        !has_shape(panels_, {n_panels, quads, kernels::kPanelRows, 4}) ||
        !has_shape(scale_, {n_panels, groups, kernels::kPanelRows}) ||
        (zero_point_ && !has_shape(*zero_point_, {n_panels, groups, kernels::kPanelRows}))) {
      throw std::invalid_argument("integer weight of [" + std::to_string(rows) + ", " +
                                  std::to_string(columns) +
                                  "]: panels, scales or zero points have another shape, or rows "
                                  "are longer than " +
                                  std::to_string(kMostColumns));
    }
    weight_ = {rows,           columns,       groups == 1 ? columns : columns / groups,   groups,
               panels_.data(), scale_.data(), zero_point_ ? zero_point_->data() : nullptr};
  }

  void multiply(const Input& x, const IntegerInput& input, Result& out,
                const std::optional<Bias>& bias, int threads, const std::string& isa) {
    check(x, input, out, bias);
    const auto& kernel = kernels::integer_kernel(kernels::isa_by_name(isa));
    const auto tokens = static_cast<std::int64_t>(x.shape(0));
    if (tokens == 0) return;
    const std::int64_t groups = std::max(weight_.groups, input.groups);
    const std::int32_t* sums = sums_of(groups);
    const kernels::Activations from{x.data(), number_type(x.dtype()), tokens, weight_.columns,
                                    x.stride(0)};
    const kernels::Output to{out.data(), number_type(out.dtype()), out.stride(0),
                             bias ? bias->data() : nullptr};
    nb::gil_scoped_release release;
    std::uint8_t* prepared = scratch(kernel.prepared_bytes(tokens, weight_.columns, groups));
    const std::int64_t tiles = (tokens + kernel.token_tile - 1) / kernel.token_tile;
    engine::in_team(tokens * weight_.columns < kSerialValues ? 1 : threads, tiles,
                    [&](std::int64_t tile, int) {
                      const std::int64_t begin = tile * kernel.token_tile;
                      kernel.prepare(from, input, groups, begin,
                                     std::min(tokens, begin + kernel.token_tile), prepared);
                    });
    const bool is_small = tokens * weight_.columns * weight_.rows < kSerialProducts;
    engine::in_team(is_small ? 1 : threads, (weight_.rows + kernel.row_tile - 1) / kernel.row_tile,
                    [&](std::int64_t tile, int) {
                      const std::int64_t begin = tile * kernel.row_tile;
                      kernel.multiply(weight_, input, sums, prepared, tokens, to, begin,
                                      std::min(weight_.rows, begin + kernel.row_tile));
                    });
  }

 private:
  void check(const Input& x, const IntegerInput& input, const Result& out,
             const std::optional<Bias>& bias) const {
    const auto is_dense = [](const auto& array) {
      return array.shape(1) == 1 || array.stride(1) == 1;
    };
    if (static_cast<std::int64_t>(x.shape(1)) != weight_.columns || !is_dense(x) ||
        static_cast<std::int64_t>(out.shape(1)) != weight_.rows || !is_dense(out) ||
        out.shape(0) != x.shape(0) ||
        (bias && static_cast<std::int64_t>(bias->shape(0)) != weight_.rows)) {
      throw std::invalid_argument("input, result or bias does not fit a weight of [" +
                                  std::to_string(weight_.rows) + ", " +
                                  std::to_string(weight_.columns) + "]");
    }
    if (input.groups > 1 && (weight_.columns % (16 * input.groups) != 0 ||
                             (weight_.groups > 1 && weight_.groups != input.groups))) {
      throw std::invalid_argument("groups of inputs and weights do not fit each other");
    }
  }

  // Computed for each cut of the columns that is asked for; the caller holds the GIL.
  const std::int32_t* sums_of(std::int64_t groups) {
    auto& sums = sums_[groups];
    if (sums.empty()) {
      sums.resize(panels_.shape(0) * static_cast<std::size_t>(groups) * kernels::kPanelRows);
      kernels::integer_sums(weight_, groups, sums.data());
    }
    return sums.data();
  }

  Panels panels_;
  Scales scale_;
  std::optional<Points> zero_point_;
  kernels::IntegerWeight weight_{};
  std::map<std::int64_t, std::vector<std::int32_t>> sums_;
};

IntegerInput make_input(bool is_symmetric, int bits, std::int64_t groups,
                        std::optional<float> scale, int zero_point) {
  if (bits < 2 || bits > 8 || groups < 1 || zero_point < 0 || zero_point > 255) {
    throw std::invalid_argument(
        "inputs have 2 to 8 bits, at least one group, a zero point that "
        "is a code");
  }
  const float half = static_cast<float>(1 << (bits - 1));
  const float middle = is_symmetric ? half : static_cast<float>(zero_point);
  return {is_symmetric,
          scale.has_value(),
          is_symmetric ? half - 1 : 2 * half - 1,
          is_symmetric ? 1.0f : 0.0f,
          2 * half - 1,
          scale.value_or(0.0f),
          middle,
          groups};
}

}  // namespace

void bind_integer_matmul(nb::module_& module) {
  nb::class_<IntegerInput>(module, "IntegerInput",
                           "How the inputs of a linear layer become codes; see "
                           "lilliput.activations.")
      .def(
          "__init__",
          [](IntegerInput* self, bool is_symmetric, int bits, std::int64_t groups,
             std::optional<float> scale, int zero_point) {
            new (self) IntegerInput(make_input(is_symmetric, bits, groups, scale, zero_point));
          },
          nb::kw_only(), "is_symmetric"_a, "bits"_a, "groups"_a = 1, "scale"_a = nb::none(),
          "zero_point"_a = 0);
  nb::class_<BoundWeight>(module, "IntegerWeight",
                          "Integer codes of a linear layer, 16 rows interleaved; keeps the "
                          "arrays that it is given.")
      .def(nb::init<Panels, Scales, std::optional<Points>, std::int64_t, std::int64_t>(),
           "panels"_a, "scale"_a, "zero_point"_a.none(), "rows"_a, "columns"_a)
      .def("multiply", &BoundWeight::multiply, "x"_a, "input"_a, "out"_a, "bias"_a.none(),
           "threads"_a = 1, "isa"_a = "",
           "out [tokens, rows] = x [tokens, columns] times the weight, plus bias; x and out "
           "float32, or bfloat16 as uint16, rows contiguous. Raises ValueError.");
}
