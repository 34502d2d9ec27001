// SPDX-License-Identifier: Apache-2.0
// Weights of any format, decoded to float32, times float32 activations.
#pragma once

#include "kernels/isa/tiling.h"
#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {

std::size_t f32_prepared_bytes(std::int64_t tokens, std::int64_t columns);
void f32_prepare(const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t columns,
                 std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared);
void f32_multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens, float* y,
                  std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
                  std::uint8_t* scratch);
std::size_t f32_scratch_bytes(std::int64_t columns, std::int64_t tokens);

}  // namespace lilliput::kernels::LILLIPUT_ISA
