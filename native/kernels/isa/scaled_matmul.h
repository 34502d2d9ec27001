// SPDX-License-Identifier: Apache-2.0
// Weights with integer group scales times int8 activations: every format whose header has
// `unpack_rows` (the K-quants).
#pragma once

#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

// Null for other formats.
const MatmulKernel* scaled_kernel(formats::FormatId format, bool is_interleaved);

}  // namespace lilliput::kernels::LILLIPUT_ISA
