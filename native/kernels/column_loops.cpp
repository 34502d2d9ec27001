// SPDX-License-Identifier: Apache-2.0
#include "kernels/column_loops.h"

#include <algorithm>

namespace lilliput::kernels {

namespace scalar {
extern const ColumnLoops kColumnLoops;
}
#if defined(__x86_64__)
namespace avx2 {
extern const ColumnLoops kColumnLoops;
}
namespace avx512_vnni {
extern const ColumnLoops kColumnLoops;
}
#endif

std::size_t panel_floats(std::int64_t columns) {
  const std::int64_t panels = (columns + kPanelColumns - 1) / kPanelColumns;
  return static_cast<std::size_t>(panels * kPanelColumns * columns);
}

void pack_panels(const ConstRows& matrix, std::int64_t columns, float* panels) {
  for (std::int64_t first = 0; first < columns; first += kPanelColumns) {
    const std::int64_t n = std::min(kPanelColumns, columns - first);
    float* panel = panels + first * columns;
    for (std::int64_t row = 0; row < columns; ++row) {
      for (std::int64_t j = 0; j < kPanelColumns; ++j) {
        panel[row * kPanelColumns + j] =
            j < n ? matrix.data[row * matrix.stride + first + j] : 0.0f;
      }
    }
  }
}

const ColumnLoops& column_loops(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::kColumnLoops;
  if (isa == Isa::avx2) return avx2::kColumnLoops;
#endif
  (void)isa;
  return scalar::kColumnLoops;
}

}  // namespace lilliput::kernels
