// SPDX-License-Identifier: Apache-2.0
// Weights with integer group scales times int8 activations: the K-quants, and interleaved rows of
// formats whose scales become integers.
#pragma once

#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Null for other formats.
const MatmulKernel* scaled_kernel(formats::FormatId format, bool is_interleaved);

}  // namespace lilliput::kernels::LILLIPUT_ISA
