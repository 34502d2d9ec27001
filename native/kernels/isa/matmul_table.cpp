// SPDX-License-Identifier: Apache-2.0
// The kernel of every format for one instruction set.
#include "kernels/isa/f32_matmul.h"
#include "kernels/isa/half_matmul.h"
#include "kernels/isa/int8_matmul.h"
#include "kernels/isa/scaled_matmul.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

constexpr MatmulKernel kFloat = {InputLayout::f32, f32_prepared_bytes, f32_prepare,
                                 f32_multiply,     kTokenTile,         kRowBlock,
                                 f32_scratch_bytes};
constexpr MatmulKernel kInt8 = {InputLayout::int8_32, int8_prepared_bytes<false>,
                                int8_prepare<false>,  int8_multiply,
                                kTokenTile,           kRowBlock,
                                int8_scratch_bytes};

}  // namespace

const MatmulKernel& matmul_kernel(formats::FormatId format, bool exact_input) {
  if (exact_input) return kFloat;
  if (const MatmulKernel* scaled = scaled_kernel(format, false)) return *scaled;
  if (const MatmulKernel* half = half_kernel(format, false)) return *half;
  return has_int8_kernel(format) ? kInt8 : kFloat;
}

const MatmulKernel* interleaved_kernel(formats::FormatId format) {
  if (const MatmulKernel* scaled = scaled_kernel(format, true)) return scaled;
  if (const MatmulKernel* half = half_kernel(format, true)) return half;
  return int8_interleaved_kernel(format);
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
