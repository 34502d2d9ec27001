// SPDX-License-Identifier: Apache-2.0
// attend_whole in integers of 16 bits, for models whose linears round their inputs to 8: an
// instruction multiplies two of them a lane where it multiplies one float. Errors are some 2^-12 of
// the largest number, sums are exact.
//
//   scores  q and k of 12 or 13 bits, q under a scale for each row, k under one for the head
//   output  probabilities relative to the row's largest in steps of 1 / 16383, which are what is
//           divided by as well, and v of 12 bits under one scale for the head
//
// A few rows go all the way while their scores lie in the first-level cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/isa/attention.h"
#include "kernels/isa/attention_block.h"
#include "kernels/isa/word_products.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Keys whose products with probabilities fit a sum: 64 * 16383 * 2047 < 2^31.
constexpr std::int64_t kSummedKeys = 64;
constexpr float kTopProbability = 16383.0f;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kTopValue = 2047.0f;
constexpr std::int32_t kInfinityBits = 0x7f800000;

struct Parts {
  std::int32_t* keys;    // [groups of kWide keys][head_dim / 2][kWide]
  std::int32_t* values;  // [padded keys / 2][head_dim]
  float* scores;         // [kTileRows][padded keys]; then [padded keys / 2] words of each row
  std::int32_t* q;       // [kTileRows][head_dim / 2]
  float key_scale;
  float value_scale;
  std::int64_t padded;  // keys
};

Parts cut(const WholeAttention& task, float* scratch) {
  Parts parts{};
  parts.padded = round_up(task.keys, kWholeKeys);
  parts.keys = reinterpret_cast<std::int32_t*>(scratch);
  parts.values = parts.keys + parts.padded * task.head_dim / 2;
  parts.scores = scratch + parts.padded * task.head_dim;
  const std::int64_t rows = std::min<std::int64_t>(kTileRows, task.queries);
  parts.q = reinterpret_cast<std::int32_t*>(parts.scores + rows * parts.padded);
  return parts;
}

// Largest magnitude of rows -> what it is multiplied by to become `top`, and the inverse of that.
struct Scale {
  float to_codes;
  float to_values;  // NaN where a number is not finite
};

Scale scale_of(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t width,
               float top) {
  Int largest[2]{};  // side by side, as each waits for the one before
  for (std::int64_t row = 0; row < rows; ++row, x += stride) {
    for (std::int64_t i = 0; i < width; i += kPairBlock) {
      for (int part = 0; part < 2; ++part) {
        const Int bits = (Int)simd::absolute(simd::load(x + i + part * kWide));
        largest[part] = bits > largest[part] ? bits : largest[part];
      }
    }
  }
  std::int32_t lanes[kWide];
  simd::store_int(lanes, largest[0] > largest[1] ? largest[0] : largest[1]);
  const std::int32_t bits = *std::max_element(lanes, lanes + kWide);
  if (bits >= kInfinityBits) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  if (magnitude < 0x1p-100f) return {0.0f, 0.0f};
  return {top / magnitude, magnitude / top};
}

inline Int two_codes(Float low, Float high, Float to_codes) {
  return simd::two_words(simd::round_to_int(low * to_codes), simd::round_to_int(high * to_codes));
}

// Sums of head_dim products fit 32 bits.
float top_of_scores(std::int64_t head_dim) {
  return std::floor(std::sqrt(2147483647.0f / static_cast<float>(head_dim))) - 1.0f;
}

float turn_keys(const WholeAttention& task, const Parts& parts) {
  const Scale scale =
      scale_of(task.k, task.keys, task.kv_stride, task.head_dim, top_of_scores(task.head_dim));
  const Float to_codes = simd::broadcast(scale.to_codes);
  for (std::int64_t first = 0; first < parts.padded; first += kWide) {
    std::int32_t* to = parts.keys + first * task.head_dim / 2;
    for (std::int64_t d = 0; d < task.head_dim; d += kPairBlock) {
      Int rows[kWide];
      for (int i = 0; i < kWide; ++i) {
        const float* k = task.k + (first + i) * task.kv_stride + d;
        rows[i] = first + i < task.keys ? two_codes(simd::load(k), simd::load(k + kWide), to_codes)
                                        : Int{};
      }
      simd::transpose(rows);
      for (int i = 0; i < kWide; ++i) simd::store_int(to + (d / 2 + i) * kWide, rows[i]);
    }
  }
  return scale.to_values;
}

// Words of two keys, as their probabilities will lie.
float pair_values(const WholeAttention& task, const Parts& parts) {
  const Scale scale = scale_of(task.v, task.keys, task.kv_stride, task.head_dim, kTopValue);
  const Float to_codes = simd::broadcast(scale.to_codes);
  for (std::int64_t pair = 0; pair < parts.padded / 2; ++pair) {
    const std::int64_t key = pair / kWide * kPairBlock + pair % kWide;
    const float* low = task.v + key * task.kv_stride;
    const float* high = low + kWide * task.kv_stride;
    for (std::int64_t d = 0; d < task.head_dim; d += kWide) {
      simd::store_int(
          parts.values + pair * task.head_dim + d,
          two_codes(key < task.keys ? simd::load(low + d) : simd::zero(),
                    key + kWide < task.keys ? simd::load(high + d) : simd::zero(), to_codes));
    }
  }
  return scale.to_values;
}

// Words of so many queries; factor: of each row's integer scores, which are to be powers of two.
template <int kRows>
void round_queries(const WholeAttention& task, const Parts& parts, std::int64_t first,
                   float (&factor)[kRows]) {
  const float top = top_of_scores(task.head_dim);
  for (int row = 0; row < kRows; ++row) {
    const float* q = task.q + (first + row) * task.q_stride;
    const Scale scale = scale_of(q, 1, 0, task.head_dim, top);
    const Float to_codes = simd::broadcast(scale.to_codes);
    for (std::int64_t d = 0; d < task.head_dim; d += kPairBlock) {
      simd::store_int(parts.q + (row * task.head_dim + d) / 2,
                      two_codes(simd::load(q + d), simd::load(q + d + kWide), to_codes));
    }
    factor[row] = scale.to_values * parts.key_scale * (task.scale * kLog2E);
  }
}

template <int kRows>
void score(const WholeAttention& task, const Parts& parts, const float (&factor)[kRows]) {
  const std::int64_t words = task.head_dim / 2;
  for_groups(parts.padded / kWide, [&](auto wide, std::int64_t group) {
    constexpr int kGroups = decltype(wide)::value;
    Int sums[kRows][kGroups];
    multiply_words(parts.q, words, parts.keys + group * words * kWide, words * kWide, kWide, words,
                   sums);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Float scale = simd::broadcast(factor[r]);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        simd::store(parts.scores + r * parts.padded + (group + g) * kWide,
                    simd::to_float(sums[r][g]) * scale);
      }
    }
  });
}

// Adds the bias of a row's scores, hides what is past the last key, and returns the largest.
float finish_scores(const WholeAttention& task, const Parts& parts, std::int64_t row,
                    float* scores) {
  if (task.bias != nullptr) {
    const float* bias = task.bias - (task.first_query + row);
    const Float unit = simd::broadcast(kLog2E);
    for (std::int64_t i = 0; i < task.keys; i += kWide) {
      simd::store(scores + i, simd::fma(simd::load(bias + i), unit, simd::load(scores + i)));
    }
  }
  std::fill(scores + task.keys, scores + parts.padded, kMinusInfinity);
  Float top[2] = {simd::load(scores), simd::load(scores + kWide)};
  for (std::int64_t i = kPairBlock; i < parts.padded; i += kPairBlock) {
    top[0] = simd::max(top[0], simd::load(scores + i));
    top[1] = simd::max(top[1], simd::load(scores + i + kWide));
  }
  return simd::max_lane(simd::max(top[0], top[1]));
}

// 2^x in steps of 1 / kTopProbability, for x <= 0: 2^n times a polynomial that errs by less than
// 3e-6, a twentieth of a step, on [-0.5, 0.5].
inline Int probability(Float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Float bounded = simd::max(x, simd::broadcast(-20.0f));
  const Float n_and_magic = bounded + simd::broadcast(kMagic);
  const Float rest = bounded - (n_and_magic - simd::broadcast(kMagic));
  Float p = simd::broadcast(0.00968571058f * kTopProbability);
  for (const float coefficient : {0.0559220257f, 0.240218655f, 0.693121036f, 1.0f}) {
    p = simd::fma(p, rest, simd::broadcast(coefficient * kTopProbability));
  }
  return simd::round_to_int((Float)((Int)p + ((Int)n_and_magic << 23)));
}

// Scores of a row -> words of its probabilities in their place. Returns their sum, which is below
// 2^24.
float weigh_scores(const Parts& parts, float largest, float* scores) {
  const Float reference = simd::broadcast(largest);
  auto* words = reinterpret_cast<std::int32_t*>(scores);
  Int sums{};
  for (std::int64_t i = 0; i < parts.padded; i += kPairBlock) {
    const Int low = probability(simd::load(scores + i) - reference);
    const Int high = probability(simd::load(scores + i + kWide) - reference);
    sums += low + high;
    simd::store_int(words + i / 2, low | (high << 16));
  }
  return simd::sum(simd::to_float(sums));
}

template <int kRows>
void weigh(const WholeAttention& task, const Parts& parts, std::int64_t row,
           const float (&inverse)[kRows]) {
  const auto* words = reinterpret_cast<const std::int32_t*>(parts.scores);
  const std::int64_t pairs = parts.padded / 2;
  for_groups(task.head_dim / kWide, [&](auto wide, std::int64_t group) {
    constexpr int kGroups = decltype(wide)::value;
    Float totals[kRows][kGroups] = {};
    for (std::int64_t begin = 0; begin < pairs; begin += kSummedKeys / 2) {
      Int sums[kRows][kGroups];
      multiply_words(words + begin, parts.padded,
                     parts.values + begin * task.head_dim + group * kWide, kWide, task.head_dim,
                     std::min(kSummedKeys / 2, pairs - begin), sums);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) totals[r][g] += simd::to_float(sums[r][g]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Float factor = simd::broadcast(inverse[r]);
      float* out = task.out + (row + r) * task.q_stride + group * kWide;
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) simd::store(out + g * kWide, totals[r][g] * factor);
    }
  });
}

// Asks for the same rows of the next head, which lie beside these: heads are strips of long rows,
// which the processor does not foresee.
void fetch_next_head(const WholeAttention& task, std::int64_t row, int rows) {
  constexpr std::int64_t kLine = 16;  // floats
  for (std::int64_t i = row; i < row + rows; ++i) {
    for (std::int64_t d = task.head_dim; d < 2 * task.head_dim; d += kLine) {
      __builtin_prefetch(task.q + i * task.q_stride + d, 0, 2);
      if (i >= task.keys) continue;
      __builtin_prefetch(task.k + i * task.kv_stride + d, 0, 2);
      __builtin_prefetch(task.v + i * task.kv_stride + d, 0, 2);
    }
  }
}

template <int kRows>
void attend_rows(const WholeAttention& task, const Parts& parts, std::int64_t row) {
  fetch_next_head(task, row, kRows);
  float factor[kRows];
  round_queries(task, parts, row, factor);
  score(task, parts, factor);
  float largest[kRows];
  for (int r = 0; r < kRows; ++r) {
    largest[r] = finish_scores(task, parts, row + r, parts.scores + r * parts.padded);
  }
  float inverse[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float sum = weigh_scores(parts, largest[r], parts.scores + r * parts.padded);
    // What is not finite is no code.
    inverse[r] = std::isfinite(factor[r]) ? parts.value_scale / sum
                                          : std::numeric_limits<float>::quiet_NaN();
  }
  weigh(task, parts, row, inverse);
}

}  // namespace

void attend_whole_words(const WholeAttention& task, float* scratch) {
  Parts parts = cut(task, scratch);
  parts.key_scale = turn_keys(task, parts);
  parts.value_scale = pair_values(task, parts);
  for_row_tiles<kTileRows>(task.queries, [&](auto count, std::int64_t row) {
    attend_rows<decltype(count)::value>(task, parts, row);
  });
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
