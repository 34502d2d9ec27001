// SPDX-License-Identifier: Apache-2.0
// The kernel of every format for one instruction set.
#include <cstring>

#include "kernels/matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

std::size_t prepared_bytes(std::int64_t tokens, std::int64_t columns) {
  return static_cast<std::size_t>(tokens * columns) * sizeof(float);
}

void prepare(const float* x, std::int64_t x_stride, std::int64_t, std::int64_t columns,
             std::int64_t token_begin, std::int64_t token_end, std::uint8_t* prepared) {
  auto* rows = reinterpret_cast<float*>(prepared);
  for (std::int64_t token = token_begin; token < token_end; ++token) {
    std::memcpy(rows + token * columns, x + token * x_stride,
                static_cast<std::size_t>(columns) * sizeof(float));
  }
}

void multiply(const Weight& weight, const std::uint8_t* prepared, std::int64_t tokens, float* y,
              std::int64_t y_stride, std::int64_t row_begin, std::int64_t row_end,
              std::uint8_t* scratch) {
  const auto& format = formats::traits(weight.format);
  const auto* x = reinterpret_cast<const float*>(prepared);
  auto* values = reinterpret_cast<float*>(scratch);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    format.decode(weight.blocks + row * weight.row_bytes, values,
                  weight.columns / format.block_size);
    for (std::int64_t token = 0; token < tokens; ++token) {
      float sums[16] = {};
      std::int64_t k = 0;
      const float* input = x + token * weight.columns;
      for (; k + 16 <= weight.columns; k += 16) {
        for (int lane = 0; lane < 16; ++lane) sums[lane] += values[k + lane] * input[k + lane];
      }
      for (; k < weight.columns; ++k) sums[0] += values[k] * input[k];
      float sum = 0.0f;
      for (const float part : sums) sum += part;
      y[token * y_stride + row] = sum;
    }
  }
}

std::size_t scratch_bytes(std::int64_t columns, std::int64_t) {
  return static_cast<std::size_t>(columns) * sizeof(float);
}

constexpr MatmulKernel kGeneric = {InputLayout::f32, prepared_bytes, prepare, multiply, 1, 1,
                                   scratch_bytes};

}  // namespace

const MatmulKernel& matmul_kernel(formats::FormatId, bool) { return kGeneric; }

}  // namespace lilliput::kernels::LILLIPUT_ISA
