// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul.h"

#include "kernels/probe.h"

namespace lilliput::kernels {

// Once per instruction set, defined by native/kernels/isa/matmul_table.cpp and probe.cpp.
#define LILLIPUT_DECLARE(set)                                                    \
  namespace set {                                                                \
  const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input); \
  const MatmulKernel* interleaved_kernel(formats::FormatId format);              \
  std::int64_t probe_dots(std::int64_t iterations);                              \
  std::int64_t probe_read(const std::uint8_t* bytes, std::int64_t n_bytes);      \
  }
LILLIPUT_BUILT_SETS(LILLIPUT_DECLARE)
#undef LILLIPUT_DECLARE

namespace {

struct Functions {
  const MatmulKernel& (*matmul_kernel)(formats::FormatId format, bool exact_input);
  const MatmulKernel* (*interleaved_kernel)(formats::FormatId format);
  std::int64_t (*probe_dots)(std::int64_t iterations);
  std::int64_t (*probe_read)(const std::uint8_t* bytes, std::int64_t n_bytes);
};

Functions functions(Isa isa) {
  require_available(isa);
#define LILLIPUT_FUNCTIONS(set)                                                             \
  if (isa == Isa::set) {                                                                    \
    return {set::matmul_kernel, set::interleaved_kernel, set::probe_dots, set::probe_read}; \
  }
  LILLIPUT_BUILT_SETS(LILLIPUT_FUNCTIONS)
#undef LILLIPUT_FUNCTIONS
  return {};  // never: only sets that are built are available
}

}  // namespace

const MatmulKernel& matmul_kernel(formats::FormatId format, Isa isa, bool exact_input) {
  return functions(isa).matmul_kernel(format, exact_input);
}

const MatmulKernel* interleaved_kernel(formats::FormatId format, Isa isa) {
  return functions(isa).interleaved_kernel(format);
}

std::int64_t probe_dots(Isa isa, std::int64_t iterations) {
  return functions(isa).probe_dots(iterations);
}

std::int64_t probe_read(Isa isa, const std::uint8_t* bytes, std::int64_t n_bytes) {
  return functions(isa).probe_read(bytes, n_bytes);
}

}  // namespace lilliput::kernels
