// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_matmul.h"

#include <algorithm>
#include <stdexcept>

namespace lilliput::kernels {

// Once per instruction set, native/kernels/isa.
#define LILLIPUT_DECLARE(set)                \
  namespace set {                            \
  extern const IntegerKernel kIntegerKernel; \
  }
LILLIPUT_BUILT_SETS(LILLIPUT_DECLARE)
#undef LILLIPUT_DECLARE

const IntegerKernel& integer_kernel(Isa isa) {
  require_available(isa);
#define LILLIPUT_TABLE(set) \
  if (isa == Isa::set) return set::kIntegerKernel;
  LILLIPUT_BUILT_SETS(LILLIPUT_TABLE)
#undef LILLIPUT_TABLE
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
