// SPDX-License-Identifier: Apache-2.0
// lilliput._native: number formats and matrix kernels, for tests, verification and tools.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "formats/format.h"
#include "kernels/encode.h"
#include "kernels/matmul.h"
#include "kernels/probe.h"

namespace nb = nanobind;

namespace {

using lilliput::formats::format_by_name;
using lilliput::formats::FormatTraits;

using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, float>;

Floats new_floats(std::unique_ptr<float[]> values, std::initializer_list<std::size_t> shape) {
  float* data = values.release();
  nb::capsule owner(data, [](void* pointer) noexcept { delete[] static_cast<float*>(pointer); });
  return Floats(data, shape, owner);
}

// Calls work(begin, end) on `threads` disjoint ranges of [0, n).
void in_parallel(std::int64_t n, int threads,
                 const std::function<void(std::int64_t, std::int64_t)>& work) {
  const std::int64_t parts = std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(n, 1));
  std::vector<std::thread> workers;
  for (std::int64_t part = 1; part < parts; ++part) {
    workers.emplace_back([&, part] { work(n * part / parts, n * (part + 1) / parts); });
  }
  work(0, n / parts);
  for (auto& worker : workers) worker.join();
}

Floats decode(const std::string& name, const Bytes& blocks, std::int64_t n_values, int threads) {
  const FormatTraits& format = lilliput::formats::traits(format_by_name(name));
  const std::int64_t n_blocks = n_values / format.block_size;
  const auto n_bytes = static_cast<std::int64_t>(blocks.size());
  if (n_values < 0 || n_values % format.block_size != 0 ||
      n_blocks * format.block_bytes != n_bytes) {
    throw std::invalid_argument(name + ": " + std::to_string(n_bytes) + " bytes for " +
                                std::to_string(n_values) + " values; a block of " +
                                std::to_string(format.block_size) + " values has " +
                                std::to_string(format.block_bytes) + " bytes");
  }
  auto values = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(n_values));
  {
    nb::gil_scoped_release release;
    in_parallel(n_blocks, threads, [&](std::int64_t begin, std::int64_t end) {
      format.decode(blocks.data() + begin * format.block_bytes,
                    values.get() + begin * format.block_size, end - begin);
    });
  }
  return new_floats(std::move(values), {static_cast<std::size_t>(n_values)});
}

std::vector<std::string> formats() {
  std::vector<std::string> names;
#define LILLIPUT_NAME(name) names.emplace_back(#name);
  LILLIPUT_FORMATS(LILLIPUT_NAME)
#undef LILLIPUT_NAME
  return names;
}

using lilliput::kernels::Isa;
using lilliput::kernels::isa_by_name;

// 64-byte aligned working memory.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes)
      : data_(static_cast<std::uint8_t*>(
            ::operator new(std::max<std::size_t>(bytes, 1), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::uint8_t* data() { return data_; }

 private:
  std::uint8_t* data_;
};

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Floats matmul(const std::string& name, const Bytes& blocks, std::int64_t rows, const Matrix& x,
              const std::string& isa, bool exact_input, int threads, bool interleaves) {
  const auto id = format_by_name(name);
  const FormatTraits& format = lilliput::formats::traits(id);
  const auto tokens = static_cast<std::int64_t>(x.shape(0));
  const auto columns = static_cast<std::int64_t>(x.shape(1));
  const std::int64_t row_bytes = columns / format.block_size * format.block_bytes;
  if (rows < 1 || tokens < 1 || columns < 1 || columns % format.block_size != 0 ||
      rows * row_bytes != static_cast<std::int64_t>(blocks.size())) {
    throw std::invalid_argument(name + ": " + std::to_string(blocks.size()) +
                                " bytes for a weight of [" + std::to_string(rows) + ", " +
                                std::to_string(columns) + "]");
  }
  const auto* interleaved =
      interleaves ? lilliput::kernels::interleaved_kernel(id, isa_by_name(isa)) : nullptr;
  if (interleaves && (interleaved == nullptr || exact_input)) {
    throw std::invalid_argument(name + ": no kernel for interleaved rows");
  }
  const auto& kernel = interleaves
                           ? *interleaved
                           : lilliput::kernels::matmul_kernel(id, isa_by_name(isa), exact_input);
  lilliput::kernels::Weight weight{id, rows, columns, blocks.data(), row_bytes};
  const std::int64_t group = lilliput::kernels::kMostLanes;
  const std::int64_t padded_rows = (rows + group - 1) / group * group;
  const std::int64_t interleaved_bytes = interleaves ? kernel.interleaved_row_bytes(columns) : 0;
  Buffer interleaved_rows(static_cast<std::size_t>(padded_rows * interleaved_bytes) +
                          lilliput::kernels::kInterleavedMargin);
  if (interleaves) {
    kernel.interleave(weight, 0, rows, interleaved_rows.data());
    weight = {id, rows, columns, interleaved_rows.data(), interleaved_bytes, true};
  }
  auto y = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(tokens * rows));
  {
    nb::gil_scoped_release release;
    Buffer prepared(kernel.prepared_bytes(tokens, columns));
    const std::int64_t token_tiles = (tokens + kernel.token_tile - 1) / kernel.token_tile;
    in_parallel(token_tiles, threads, [&](std::int64_t begin, std::int64_t end) {
      kernel.prepare(x.data(), columns, tokens, columns, begin * kernel.token_tile,
                     std::min(tokens, end * kernel.token_tile), prepared.data());
    });
    const std::int64_t row_tiles = (rows + kernel.row_tile - 1) / kernel.row_tile;
    in_parallel(row_tiles, threads, [&](std::int64_t begin, std::int64_t end) {
      Buffer scratch(kernel.scratch_bytes(columns, tokens));
      kernel.multiply(weight, prepared.data(), tokens, y.get(), rows, begin * kernel.row_tile,
                      std::min(rows, end * kernel.row_tile), scratch.data());
    });
  }
  return new_floats(std::move(y),
                    {static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows)});
}

using EncodedBytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>;

// The encoder of a format on an instruction set, "" for the best; throws where there is none.
lilliput::kernels::EncodeRows row_encoder(const std::string& name, const std::string& isa) {
  const auto encode = lilliput::kernels::row_encoder(format_by_name(name), isa_by_name(isa));
  if (encode == nullptr) throw std::invalid_argument(name + ": no native encoder");
  return encode;
}

EncodedBytes encode(const std::string& name, const Matrix& weight,
                    std::optional<nb::ndarray<const float, nb::ndim<1>, nb::c_contig>> importance,
                    float mean_square_share, int threads, const std::string& isa) {
  const auto encode_rows = row_encoder(name, isa);
  const FormatTraits& format = lilliput::formats::traits(format_by_name(name));
  const auto rows = static_cast<std::int64_t>(weight.shape(0));
  const auto columns = static_cast<std::int64_t>(weight.shape(1));
  if (columns % format.block_size != 0) {
    throw std::invalid_argument(name + ": rows of " + std::to_string(columns) +
                                " weights do not divide into blocks of " +
                                std::to_string(format.block_size));
  }
  if (importance && static_cast<std::int64_t>(importance->shape(0)) != columns) {
    throw std::invalid_argument(name + ": importance of " + std::to_string(importance->shape(0)) +
                                " columns for rows of " + std::to_string(columns));
  }
  const std::int64_t row_bytes = columns / format.block_size * format.block_bytes;
  auto blocks = std::make_unique_for_overwrite<std::uint8_t[]>(
      std::max<std::size_t>(1, static_cast<std::size_t>(rows * row_bytes)));
  {
    nb::gil_scoped_release release;
    in_parallel(rows, threads, [&](std::int64_t begin, std::int64_t end) {
      encode_rows({weight.data() + begin * columns, importance ? importance->data() : nullptr,
                   end - begin, columns, mean_square_share},
                  blocks.get() + begin * row_bytes);
    });
  }
  std::uint8_t* data = blocks.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
  return EncodedBytes(data, {static_cast<std::size_t>(rows), static_cast<std::size_t>(row_bytes)},
                      owner);
}

nb::ndarray<nb::numpy, std::int32_t> nearest_vectors(const std::string& name, const Matrix& y,
                                                     const Matrix& metric, int threads,
                                                     const std::string& isa) {
  const auto rounder = lilliput::kernels::vector_rounder(format_by_name(name), isa_by_name(isa));
  if (rounder.round == nullptr) throw std::invalid_argument(name + ": its codes are no vectors");
  const auto unit = static_cast<std::size_t>(rounder.unit);
  if (y.shape(0) != unit || metric.shape(0) != unit || metric.shape(1) != unit) {
    throw std::invalid_argument(name + ": vectors of " + std::to_string(y.shape(0)) +
                                " columns and a metric of " + std::to_string(metric.shape(0)) +
                                " by " + std::to_string(metric.shape(1)) + " where both are " +
                                std::to_string(unit));
  }
  const auto n = static_cast<std::int64_t>(y.shape(1));
  auto codes = std::make_unique_for_overwrite<std::int32_t[]>(
      std::max<std::size_t>(1, static_cast<std::size_t>(n)));
  {
    nb::gil_scoped_release release;
    in_parallel(n, threads, [&](std::int64_t begin, std::int64_t end) {
      rounder.round({y.data(), n, metric.data()}, begin, end, codes.get());
    });
  }
  std::int32_t* data = codes.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::int32_t*>(p); });
  return nb::ndarray<nb::numpy, std::int32_t>(data, {static_cast<std::size_t>(n)}, owner);
}

// Names of the formats that `encode` knows.
std::vector<std::string> encoders() {
  std::vector<std::string> names;
  for (const std::string& name : formats()) {
    if (lilliput::kernels::row_encoder(format_by_name(name), Isa::scalar)) names.push_back(name);
  }
  return names;
}

std::int64_t probe_dots(const std::string& isa, std::int64_t iterations) {
  nb::gil_scoped_release release;
  return lilliput::kernels::probe_dots(isa_by_name(isa), iterations);
}

std::int64_t probe_read(const std::string& isa, const Bytes& bytes) {
  nb::gil_scoped_release release;
  return lilliput::kernels::probe_read(isa_by_name(isa), bytes.data(),
                                       static_cast<std::int64_t>(bytes.size()));
}

}  // namespace

void bind_formats(nb::module_& module) {
  using namespace nb::literals;
  module.def("formats", &formats, "Names of the number formats that the native core decodes.");
  module.def("decode", &decode, "name"_a, "blocks"_a, "n_values"_a, "threads"_a = 1,
             "Decode stored blocks (uint8, C-contiguous, any shape) to float32 [n_values]. "
             "Raises ValueError for an unknown format or bytes that do not fit n_values.");
  module.def(
      "matmul", &matmul, "name"_a, "blocks"_a, "rows"_a, "x"_a, "isa"_a, "exact_input"_a = false,
      "threads"_a = 1, "interleaves"_a = false,
      "Product of x [tokens, columns] float32 with stored blocks [rows, columns]: float32 "
      "[tokens, rows]. "
      "exact_input keeps x in float32 where int8 activations are the rule. interleaves: rows "
      "are interleaved in memory first, where the format has a kernel for it. For tests "
      "and benchmarks.");
  module.def("encoders", &encoders, "Names of the number formats that the native core encodes.");
  module.def(
      "encode", &encode, "name"_a, "weight"_a, "importance"_a = nb::none(),
      "mean_square_share"_a = 2.0f, "threads"_a = 1, "isa"_a = "",
      "Search scales and codes of weight [rows, columns] float32: uint8 [rows, row_bytes]. "
      "importance: relative importance [columns] float32 or None. Squared errors weigh "
      "importance * "
      "sqrt(mean_square_share * mean square of the row + weight^2), importance alone where the "
      "share is infinite. isa: instruction set, "
      "empty for the best. The bytes depend on neither threads nor instruction set.");
  module.def(
      "nearest_vectors", &nearest_vectors, "name"_a, "y"_a, "metric"_a, "threads"_a = 1,
      "isa"_a = "",
      "Codes int32 [n] of the codebook vectors nearest to y [unit, n], float32 in units of "
      "their scale, under a symmetric metric [unit, unit]. IQ1_S: y less its group's shift.");
  module.def("probe_dots", &probe_dots, "isa"_a, "iterations"_a,
             "Run int8 dot products on registers alone; the number of operations done.");
  module.def("probe_read", &probe_read, "isa"_a, "bytes"_a,
             "Read an array once, as fast as loads go; a checksum.");
}
