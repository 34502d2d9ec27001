// SPDX-License-Identifier: Apache-2.0
// Quantized weights times int8 activations, for every format whose header has `unpack`.
#pragma once

#include "kernels/isa/int8_input.h"
#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

bool has_int8_kernel(formats::FormatId format);
void int8_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens,
                   float* y, std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                   std::uint8_t* scratch);
std::size_t int8_scratch_bytes(std::int64_t columns, std::int64_t tokens);
// For interleaved rows, every format with a float scale for 32 columns whose header has
// `unpack_rows`; null for others.
const MatmulKernel* int8_interleaved_kernel(formats::FormatId format);

}  // namespace lilliput::kernels::LILLIPUT_ISA
