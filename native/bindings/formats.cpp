// SPDX-License-Identifier: Apache-2.0
// lilliput._native: number formats and matrix kernels, for tests, verification and tools.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "formats/format.h"

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

}  // namespace

void bind_formats(nb::module_& module) {
  using namespace nb::literals;
  module.def("formats", &formats, "Names of the number formats that the native core decodes.");
  module.def("decode", &decode, "name"_a, "blocks"_a, "n_values"_a, "threads"_a = 1,
             "Decode stored blocks (uint8, C-contiguous, any shape) to float32 [n_values]. "
             "Raises ValueError for an unknown format or bytes that do not fit n_values.");
}
