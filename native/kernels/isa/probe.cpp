// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {

using simd::Int;
using simd::kLanes;

std::int64_t probe_dots(std::int64_t iterations) {
  constexpr int kChains =
      simd::kRegisters == 32 ? 12 : 6;  // enough to cover the latency, few enough for registers
  alignas(64) std::int32_t inputs[2][kLanes];
  for (int i = 0; i < kLanes; ++i)
    inputs[0][i] = inputs[1][i] = static_cast<std::int32_t>(iterations & 1);
  Int sums[kChains] = {};
  Int weights[kChains];  // different ones, or a compiler may do one product for all
  for (int j = 0; j < kChains; ++j) weights[j] = simd::broadcast(j + 1);
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < iterations; ++i) {
    // Loaded in each turn, or a compiler may do the product once.
    const Int input = simd::load_int(inputs[i & 1]);
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = simd::dot_unsigned(sums[j], weights[j], input);
  }
  Int total = {};
  for (const Int& sum : sums) total += sum;
  // The sum is far below the operations it stands for; adding its lowest bit keeps the loop alive.
  return iterations * kChains * kLanes * 8 + (total[0] & 1);
}

std::int64_t probe_read(const std::uint8_t* bytes, std::int64_t n_bytes) {
  constexpr int kVectors = 8;
  Int sums[kVectors] = {};
  for (std::int64_t i = 0; i + kVectors * 4 * kLanes <= n_bytes; i += kVectors * 4 * kLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sums[j] ^= simd::load_int(bytes + i + 4 * kLanes * j);
  }
  std::int64_t total = 0;
  for (const Int& sum : sums) total += sum[0];
  return total;
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
