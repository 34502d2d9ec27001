// SPDX-License-Identifier: Apache-2.0
#include "kernels/encode.h"

namespace lilliput::kernels {

// Once per instruction set, defined by native/kernels/isa/encode_table.cpp.
#define LILLIPUT_DECLARE(set)                             \
  namespace set {                                         \
  EncodeRows row_encoder(formats::FormatId format);       \
  VectorRounder vector_rounder(formats::FormatId format); \
  }
LILLIPUT_FLOAT_SETS(LILLIPUT_DECLARE)
#undef LILLIPUT_DECLARE

EncodeRows row_encoder(formats::FormatId format, Isa isa) {
  require_available(isa);
#define LILLIPUT_ENCODER(set) \
  if (float_set(isa) == Isa::set) return set::row_encoder(format);
  LILLIPUT_FLOAT_SETS(LILLIPUT_ENCODER)
#undef LILLIPUT_ENCODER
  return nullptr;
}

VectorRounder vector_rounder(formats::FormatId format, Isa isa) {
  require_available(isa);
#define LILLIPUT_ROUNDER(set) \
  if (float_set(isa) == Isa::set) return set::vector_rounder(format);
  LILLIPUT_FLOAT_SETS(LILLIPUT_ROUNDER)
#undef LILLIPUT_ROUNDER
  return {nullptr, 0};
}

}  // namespace lilliput::kernels
