// SPDX-License-Identifier: Apache-2.0
#include "kernels/encode.h"

namespace lilliput::kernels {

// One per instruction set, defined by native/kernels/isa/encode_table.cpp.
namespace scalar {
EncodeRows row_encoder(formats::FormatId format);
VectorRounder vector_rounder(formats::FormatId format);
}  // namespace scalar
#if defined(__x86_64__)
namespace avx2 {
EncodeRows row_encoder(formats::FormatId format);
VectorRounder vector_rounder(formats::FormatId format);
}  // namespace avx2
namespace avx512_vnni {
EncodeRows row_encoder(formats::FormatId format);
VectorRounder vector_rounder(formats::FormatId format);
}  // namespace avx512_vnni
#endif

EncodeRows row_encoder(formats::FormatId format, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::row_encoder(format);
  if (isa == Isa::avx2) return avx2::row_encoder(format);
#endif
  (void)isa;
  return scalar::row_encoder(format);
}

VectorRounder vector_rounder(formats::FormatId format, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512_vnni) return avx512_vnni::vector_rounder(format);
  if (isa == Isa::avx2) return avx2::vector_rounder(format);
#endif
  (void)isa;
  return scalar::vector_rounder(format);
}

}  // namespace lilliput::kernels
