// SPDX-License-Identifier: Apache-2.0
#include "kernels/vector_kernels.h"

namespace lilliput::kernels {

namespace scalar {
extern const VectorKernels kVectorKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const VectorKernels kVectorKernels;
}
namespace avx512_vnni {
extern const VectorKernels kVectorKernels;
}
#endif

std::size_t attention_scratch_floats(std::int64_t rows, std::int64_t head_dim) {
  // Scaled queries, scores of one key block, one block of keys and of values as floats,
  // corrections.
  return static_cast<std::size_t>(rows * head_dim + rows * kKeyBlock + kKeyBlock * head_dim +
                                  kKeyBlock * round_up(head_dim, kKeyGroup) + rows);
}

const VectorKernels& vector_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::kVectorKernels;
  if (isa == Isa::avx2) return avx2::kVectorKernels;
#endif
  (void)isa;
  return scalar::kVectorKernels;
}

}  // namespace lilliput::kernels
