// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul.h"

#include <stdexcept>

#include "kernels/probe.h"

namespace lilliput::kernels {

// Once per instruction set, defined by native/kernels/isa/matmul_table.cpp and probe.cpp.
namespace scalar {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
const MatmulKernel* interleaved_kernel(formats::FormatId format);
std::int64_t probe_dots(std::int64_t iterations);
std::int64_t probe_read(const std::uint8_t* bytes, std::int64_t n_bytes);
}  // namespace scalar
#if defined(__x86_64__)
namespace avx2 {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
const MatmulKernel* interleaved_kernel(formats::FormatId format);
std::int64_t probe_dots(std::int64_t iterations);
std::int64_t probe_read(const std::uint8_t* bytes, std::int64_t n_bytes);
}  // namespace avx2
namespace avx512_vnni {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
const MatmulKernel* interleaved_kernel(formats::FormatId format);
std::int64_t probe_dots(std::int64_t iterations);
std::int64_t probe_read(const std::uint8_t* bytes, std::int64_t n_bytes);
}  // namespace avx512_vnni
#endif

bool is_available(Isa isa) {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return has_avx2;
    case Isa::avx512_vnni:
      return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
  }
#endif
  return isa == Isa::scalar;
}

Isa best_isa() {
  for (const Isa isa : {Isa::avx512_vnni, Isa::avx2}) {
    if (is_available(isa)) return isa;
  }
  return Isa::scalar;
}

namespace {

void require_available(Isa isa) {
  if (!is_available(isa)) {
    throw std::invalid_argument("this machine cannot run the instruction set asked for");
  }
}

}  // namespace

const MatmulKernel& matmul_kernel(formats::FormatId format, Isa isa, bool exact_input) {
  require_available(isa);
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::matmul_kernel(format, exact_input);
  if (isa == Isa::avx2) return avx2::matmul_kernel(format, exact_input);
#endif
  return scalar::matmul_kernel(format, exact_input);
}

const MatmulKernel* interleaved_kernel(formats::FormatId format, Isa isa) {
  require_available(isa);
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::interleaved_kernel(format);
  if (isa == Isa::avx2) return avx2::interleaved_kernel(format);
#endif
  return scalar::interleaved_kernel(format);
}

std::int64_t probe_dots(Isa isa, std::int64_t iterations) {
  require_available(isa);
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::probe_dots(iterations);
  if (isa == Isa::avx2) return avx2::probe_dots(iterations);
#endif
  return scalar::probe_dots(iterations);
}

std::int64_t probe_read(Isa isa, const std::uint8_t* bytes, std::int64_t n_bytes) {
  require_available(isa);
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::probe_read(bytes, n_bytes);
  if (isa == Isa::avx2) return avx2::probe_read(bytes, n_bytes);
#endif
  return scalar::probe_read(bytes, n_bytes);
}

}  // namespace lilliput::kernels
