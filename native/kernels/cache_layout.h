// SPDX-License-Identifier: Apache-2.0
// How keys and values of one kv head lie in memory, in runs of sixteen positions.
//
// Floats (F16, F32):
//   keys    [head_dim][16]: sixteen keys are the lanes of a vector, so that scores need no sum over
//           lanes
//   values  [16][padded_dim], padded_dim = head_dim rounded up to 16, the padding zero
// Codes (Q8_0, Q4_0), followed in each run by their scales [scale group][16] in F16, a scale group
// being 32 dimensions of one position:
//   keys    8 bits: [padded_dim / 4][16 keys][4 dimensions]
//           4 bits: [padded_dim / 8][16 keys][4], dimensions 8 i + t in the lower halves and
//           8 i + 4 + t in the upper ones
//   values  8 bits: [4][padded_dim][4 keys]
//           4 bits: [2][padded_dim][4], keys 8 i + t in the lower halves and 8 i + 4 + t in the
//           upper ones
//   value of 8 bits = scale * code, code -127..127; of 4 bits = scale * (code - 7.5), code 0..15.
//   Keys of 8 bits hold simd::kSignedBias more, as the instruction set's dot products want it.
// Caches of codes keep keys and values multiplied by a Hadamard matrix (queries too, so that
// products stay what they were): outliers of single dimensions spread over all (arXiv 2404.00456).
// Bits a value: 16, 32, 8.5, 4.5 where head_dim is a multiple of 32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lilliput::kernels {

// Plain ones are not rotated.
enum class CacheFormat : std::uint8_t { f16, f32, q8_0, q4_0, q8_0_plain, q4_0_plain };

// Positions of one run; also the step in which a cache grows.
inline constexpr std::int64_t kKeyGroup = 16;
// Keys that one step of attention looks at.
inline constexpr std::int64_t kKeyBlock = 64;
// Dimensions of one position that share a scale.
inline constexpr std::int64_t kScaleGroup = 32;
// Of caches of codes: what the kernels have room for on the stack.
inline constexpr std::int64_t kLargestCodedHead = 1024;

static inline std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// Bits of a code; 0: floats.
static inline int code_bits(CacheFormat format) {
  if (format == CacheFormat::q8_0 || format == CacheFormat::q8_0_plain) return 8;
  return format == CacheFormat::q4_0 || format == CacheFormat::q4_0_plain ? 4 : 0;
}

static inline bool is_rotated(CacheFormat format) {
  return format == CacheFormat::q8_0 || format == CacheFormat::q4_0;
}

static inline std::int64_t scale_groups(std::int64_t head_dim) {
  return round_up(head_dim, kScaleGroup) / kScaleGroup;
}

// Bytes of sixteen positions' codes, scales excluded.
static inline std::int64_t code_bytes(int bits, std::int64_t head_dim) {
  return kKeyGroup * round_up(head_dim, kKeyGroup) * bits / 8;
}

// Bytes of sixteen positions' codes and scales: whole cache lines.
static inline std::int64_t coded_run_bytes(int bits, std::int64_t head_dim) {
  return round_up(code_bytes(bits, head_dim) + scale_groups(head_dim) * kKeyGroup * 2, 64);
}

struct RunBytes {
  std::size_t keys;
  std::size_t values;
};

// Bytes of sixteen positions.
static inline RunBytes run_bytes(CacheFormat format, std::int64_t head_dim) {
  if (const int bits = code_bits(format); bits != 0) {
    const auto bytes = static_cast<std::size_t>(coded_run_bytes(bits, head_dim));
    return {bytes, bytes};
  }
  const std::int64_t element = format == CacheFormat::f16 ? 2 : 4;
  return {static_cast<std::size_t>(kKeyGroup * head_dim * element),
          static_cast<std::size_t>(kKeyGroup * round_up(head_dim, kKeyGroup) * element)};
}

// Keys and values of one kv head: run after run.
struct HeadCache {
  void* keys;
  void* values;
};

}  // namespace lilliput::kernels
