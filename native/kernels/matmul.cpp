// SPDX-License-Identifier: Apache-2.0
#include "kernels/matmul.h"

#include <stdexcept>

namespace lilliput::kernels {

// One table per instruction set, defined by native/kernels/isa/matmul_table.cpp.
namespace scalar {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
}
#if defined(__x86_64__)
namespace avx2 {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
}
namespace avx512_vnni {
const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input);
}
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

const MatmulKernel& matmul_kernel(formats::FormatId format, Isa isa, bool exact_input) {
  if (!is_available(isa))
    throw std::invalid_argument("this machine cannot run the instruction set asked for");
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::matmul_kernel(format, exact_input);
  if (isa == Isa::avx2) return avx2::matmul_kernel(format, exact_input);
#endif
  return scalar::matmul_kernel(format, exact_input);
}

}  // namespace lilliput::kernels
