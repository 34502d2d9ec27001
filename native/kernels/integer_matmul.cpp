// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_matmul.h"

#include <algorithm>
#include <stdexcept>

namespace lilliput::kernels {

// Once per instruction set, defined by native/kernels/isa/integer_matmul.cpp.
namespace scalar {
extern const IntegerKernel kIntegerKernel;
}
#if defined(__x86_64__)
namespace avx2 {
extern const IntegerKernel kIntegerKernel;
}
namespace avx512_vnni {
extern const IntegerKernel kIntegerKernel;
}
#endif

const IntegerKernel& integer_kernel(Isa isa) {
  if (!is_available(isa)) {
    throw std::invalid_argument("this machine cannot run the instruction set asked for");
  }
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::kIntegerKernel;
  if (isa == Isa::avx2) return avx2::kIntegerKernel;
#endif
  return scalar::kIntegerKernel;
}

void integer_sums(const IntegerWeight& weight, std::int64_t groups, std::int32_t* sums) {
  const std::int64_t quads = (weight.columns + 3) / 4;
  const std::int64_t quads_together = groups == 1 ? quads : quads / groups;
  const std::int64_t panels =
      (weight.rows + kRowPadding - 1) / kRowPadding * (kRowPadding / kPanelRows);
  for (std::int64_t part = 0; part < panels * groups; ++part) {
    const std::int64_t panel = part / groups;
    const std::int64_t group = part % groups;
    std::int32_t* out = sums + part * kPanelRows;
    std::fill_n(out, kPanelRows, 0);
    const std::int8_t* lines =
        weight.panels + (panel * quads + group * quads_together) * kPanelRows * 4;
    for (std::int64_t quad = 0; quad < quads_together; ++quad) {
      for (int i = 0; i < kPanelRows * 4; ++i) out[i / 4] += lines[quad * kPanelRows * 4 + i];
    }
    if (weight.zero_point == nullptr) continue;
    const std::int64_t together = std::min(quads_together * 4, weight.columns);
    const std::int64_t own = weight.groups == 1 ? panel : part;
    for (int row = 0; row < kPanelRows; ++row) {
      out[row] -= static_cast<std::int32_t>(together) * weight.zero_point[own * kPanelRows + row];
    }
  }
}

}  // namespace lilliput::kernels
