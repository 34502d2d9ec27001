// SPDX-License-Identifier: Apache-2.0
// lilliput._native: arrays of strings in a GGUF header. Vocabularies have hundreds of thousands.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Each string is its length in 8 bytes, little endian, and UTF-8; bytes that are none become lone
// surrogates. Gives (strings, position behind them); ends before the first that does not fit.
nb::tuple gguf_strings(const Bytes& data, std::uint64_t position, std::uint64_t count) {
  const std::uint64_t size = data.size();
  const auto* bytes = reinterpret_cast<const char*>(data.data());
  nb::list strings;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t length = 0;
    if (position > size || size - position < sizeof(length)) break;
    std::memcpy(&length, bytes + position, sizeof(length));
    const std::uint64_t begin = position + sizeof(length);
    if (length > size - begin) break;
    PyObject* text =
        PyUnicode_DecodeUTF8(bytes + begin, static_cast<Py_ssize_t>(length), "surrogateescape");
    if (text == nullptr) nb::raise_python_error();
    strings.append(nb::steal(text));
    position = begin + length;
  }
  return nb::make_tuple(strings, position);
}

}  // namespace

void bind_gguf_strings(nb::module_& module) {
  module.def("gguf_strings", &gguf_strings, nb::arg("data"), nb::arg("position"), nb::arg("count"));
}
