// SPDX-License-Identifier: Apache-2.0
// F16 and BF16 weights times many tokens in integers of 16 bits.
#pragma once

#include "kernels/matmul.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Null for other formats, and where products of words are no faster than those of floats.
const MatmulKernel* word_kernel(formats::FormatId format);

}  // namespace lilliput::kernels::LILLIPUT_ISA
