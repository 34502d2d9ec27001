// SPDX-License-Identifier: Apache-2.0
// Weights that are floats of 16 bits, F16 and BF16.
#pragma once

#include "kernels/matmul.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Null for other formats, and for weights as they are stored where f32_matmul.h has nothing to add to.
const MatmulKernel* half_kernel(formats::FormatId format, bool is_interleaved);

}  // namespace lilliput::kernels::LILLIPUT_ISA
