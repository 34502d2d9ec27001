// SPDX-License-Identifier: Apache-2.0
#include "kernels/column_loops.h"

#include <algorithm>

namespace lilliput::kernels {

// Once per instruction set, native/kernels/isa.
#define LILLIPUT_DECLARE(set)            \
  namespace set {                        \
  extern const ColumnLoops kColumnLoops; \
  }
LILLIPUT_FLOAT_SETS(LILLIPUT_DECLARE)
#undef LILLIPUT_DECLARE

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
  require_available(isa);
#define LILLIPUT_TABLE(set) \
  if (float_set(isa) == Isa::set) return set::kColumnLoops;
  LILLIPUT_FLOAT_SETS(LILLIPUT_TABLE)
#undef LILLIPUT_TABLE
  return scalar::kColumnLoops;
}

}  // namespace lilliput::kernels
