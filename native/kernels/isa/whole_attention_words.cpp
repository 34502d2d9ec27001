// SPDX-License-Identifier: Apache-2.0
// attend_whole in integers of 16 bits, for models whose linears round their inputs to 8: an
// instruction multiplies two of them a lane where it multiplies one float. Errors are some 2^-12 of
// the largest number, sums are exact.
//
//   scores  q and k of 12 or 13 bits, q under a scale for each row, k under one for the head
//   output  probabilities relative to the row's largest in steps of 1 / 16383, which are what is
//           divided by as well, and v of 12 bits under one scale for the head
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/isa/attention.h"
#include "kernels/isa/attention_block.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

using simd::Float;
using simd::Int;
constexpr int kWide = simd::kLanes;
// A lane holds numbers i and i + kWide of so many.
constexpr int kPairBlock = 2 * kWide;
constexpr int kTileRows = simd::kRegisters == 32 ? 6 : 4;
constexpr int kTileGroups = simd::kRegisters == 32 ? 4 : 2;
// Keys whose products with probabilities fit a sum: 64 * 16383 * 2047 < 2^31.
constexpr std::int64_t kSummedKeys = 64;
constexpr float kTopProbability = 16383.0f;
constexpr float kTopValue = 2047.0f;
constexpr std::int32_t kInfinityBits = 0x7f800000;

struct Parts {
  std::int32_t* keys;    // [groups of kWide keys][head_dim / 2][kWide]
  std::int32_t* values;  // [padded keys / 2][head_dim]
  float* scores;         // [queries][padded keys]; then [padded keys / 2] words of each row
  std::int32_t* q;       // [queries][head_dim / 2]
  float* factor;         // of each row's integer scores
  float* inverse;        // of each row's output
  std::int64_t padded;   // keys
};

Parts cut(const WholeAttention& task, float* scratch) {
  Parts parts{};
  parts.padded = round_up(task.keys, kWholeKeys);
  parts.keys = reinterpret_cast<std::int32_t*>(scratch);
  parts.values = parts.keys + parts.padded * task.head_dim / 2;
  parts.scores = scratch + parts.padded * task.head_dim;
  parts.q = reinterpret_cast<std::int32_t*>(parts.scores + task.queries * parts.padded);
  parts.factor = parts.scores + task.queries * (parts.padded + task.head_dim / 2);
  parts.inverse = parts.factor + task.queries;
  return parts;
}

// Largest magnitude of rows -> what it is multiplied by to become `top`, and the inverse of that.
struct Scale {
  float to_codes;
  float to_values;  // NaN where a number is not finite
};

Scale scale_of(const float* x, std::int64_t rows, std::int64_t stride, std::int64_t width,
               float top) {
  Int largest_bits{};
  for (std::int64_t row = 0; row < rows; ++row, x += stride) {
    for (std::int64_t i = 0; i < width; i += kWide) {
      const Int bits = (Int)simd::absolute(simd::load(x + i));
      largest_bits = bits > largest_bits ? bits : largest_bits;
    }
  }
  std::int32_t lanes[kWide];
  simd::store_int(lanes, largest_bits);
  const std::int32_t bits = *std::max_element(lanes, lanes + kWide);
  if (bits >= kInfinityBits) return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  if (magnitude < 0x1p-100f) return {0.0f, 0.0f};
  return {top / magnitude, magnitude / top};
}

inline Int pair_codes(Float low, Float high, Float to_codes) {
  const Int mask = simd::broadcast(0xffff);
  return (simd::round_to_int(low * to_codes) & mask) | (simd::round_to_int(high * to_codes) << 16);
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
        rows[i] = first + i < task.keys ? pair_codes(simd::load(k), simd::load(k + kWide), to_codes)
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
          pair_codes(key < task.keys ? simd::load(low + d) : simd::zero(),
                     key + kWide < task.keys ? simd::load(high + d) : simd::zero(), to_codes));
    }
  }
  return scale.to_values;
}

void round_queries(const WholeAttention& task, const Parts& parts, float key_scale) {
  const float top = top_of_scores(task.head_dim);
  for (std::int64_t row = 0; row < task.queries; ++row) {
    const float* q = task.q + row * task.q_stride;
    const Scale scale = scale_of(q, 1, 0, task.head_dim, top);
    const Float to_codes = simd::broadcast(scale.to_codes);
    for (std::int64_t d = 0; d < task.head_dim; d += kPairBlock) {
      simd::store_int(parts.q + (row * task.head_dim + d) / 2,
                      pair_codes(simd::load(q + d), simd::load(q + d + kWide), to_codes));
    }
    parts.factor[row] = scale.to_values * key_scale * task.scale;
  }
}

// Adds words[row] . lines to sums; lines: one of kWide lanes after `stride` others.
template <int kRows, int kGroups>
inline void add_words(const std::int32_t* words, std::int64_t words_stride,
                      const std::int32_t* lines, std::int64_t group_stride,
                      std::int64_t line_stride, std::int64_t count, Int (&sums)[kRows][kGroups]) {
  for (std::int64_t i = 0; i < count; ++i, lines += line_stride) {
    Int line[kGroups];
    for (int g = 0; g < kGroups; ++g) line[g] = simd::load_int(lines + g * group_stride);
    for (int r = 0; r < kRows; ++r) {
      const Int word = simd::broadcast(words[r * words_stride + i]);
      for (int g = 0; g < kGroups; ++g) sums[r][g] = simd::dot_words(sums[r][g], word, line[g]);
    }
  }
}

template <int kRows, int kGroups>
inline void score_tile(const WholeAttention& task, const Parts& parts, std::int64_t row,
                       std::int64_t group) {
  Int sums[kRows][kGroups] = {};
  const std::int64_t words = task.head_dim / 2;
  add_words(parts.q + row * words, words, parts.keys + group * words * kWide, words * kWide, kWide,
            words, sums);
  for (int r = 0; r < kRows; ++r) {
    const Float factor = simd::broadcast(parts.factor[row + r]);
    for (int g = 0; g < kGroups; ++g) {
      simd::store(parts.scores + (row + r) * parts.padded + (group + g) * kWide,
                  simd::to_float(sums[r][g]) * factor);
    }
  }
}

void score(const WholeAttention& task, const Parts& parts) {
  const std::int64_t groups = parts.padded / kWide;
  for_row_tiles<kTileRows>(task.queries, [&](auto count, std::int64_t row) {
    constexpr int kRows = decltype(count)::value;
    std::int64_t g = 0;
    for (; g + kTileGroups <= groups; g += kTileGroups) {
      score_tile<kRows, kTileGroups>(task, parts, row, g);
    }
    for (; g < groups; ++g) score_tile<kRows, 1>(task, parts, row, g);
  });
}

// Scores of a row -> e^(score + bias - their maximum), 0 past the last key.
void exponentials(const WholeAttention& task, const Parts& parts, std::int64_t row) {
  float* scores = parts.scores + row * parts.padded;
  std::fill(scores + task.keys, scores + parts.padded, kMinusInfinity);
  if (task.bias != nullptr) {
    const float* bias = task.bias - (task.first_query + row);
    for (std::int64_t i = 0; i < task.keys; i += kLanes) {
      store(scores + i, add(load(scores + i), load(bias + i)));
    }
  }
  Lanes top = load(scores);
  for (std::int64_t i = kLanes; i < parts.padded; i += kLanes) {
    top = maximum(top, load(scores + i));
  }
  const Lanes reference = broadcast(largest(top));
  for (std::int64_t i = 0; i < parts.padded; i += kLanes) {
    store(scores + i, exponential(subtract(load(scores + i), reference)));
  }
}

// Probabilities of each row -> words in their place.
void softmax_rows(const WholeAttention& task, const Parts& parts, float value_scale) {
  const Float top = simd::broadcast(kTopProbability);
  for (std::int64_t row = 0; row < task.queries; ++row) {
    exponentials(task, parts, row);
    const float* p = parts.scores + row * parts.padded;
    auto* words = reinterpret_cast<std::int32_t*>(parts.scores + row * parts.padded);
    Int sums{};
    for (std::int64_t i = 0; i < parts.padded; i += kPairBlock) {
      const Int low = simd::round_to_int(simd::load(p + i) * top);
      const Int high = simd::round_to_int(simd::load(p + i + kWide) * top);
      sums += low + high;
      simd::store_int(words + i / 2, low | (high << 16));
    }
    std::int32_t lanes[kWide];
    simd::store_int(lanes, sums);
    std::int32_t sum = 0;
    for (const std::int32_t lane : lanes) sum += lane;
    // What is not finite is no code.
    const bool is_finite = std::isfinite(parts.factor[row]);
    parts.inverse[row] =
        is_finite ? value_scale / static_cast<float>(sum) : std::numeric_limits<float>::quiet_NaN();
  }
}

template <int kRows, int kGroups>
inline void weigh_tile(const WholeAttention& task, const Parts& parts, std::int64_t row,
                       std::int64_t first) {
  Float totals[kRows][kGroups] = {};
  const auto* words = reinterpret_cast<const std::int32_t*>(parts.scores + row * parts.padded);
  const std::int32_t* values = parts.values + first;
  for (std::int64_t begin = 0; begin < parts.padded / 2; begin += kSummedKeys / 2) {
    const std::int64_t count = std::min(kSummedKeys / 2, parts.padded / 2 - begin);
    Int sums[kRows][kGroups] = {};
    add_words(words + begin, parts.padded, values + begin * task.head_dim, kWide, task.head_dim,
              count, sums);
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGroups; ++g) totals[r][g] += simd::to_float(sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const Float factor = simd::broadcast(parts.inverse[row + r]);
    float* out = task.out + (row + r) * task.q_stride + first;
    for (int g = 0; g < kGroups; ++g) simd::store(out + g * kWide, totals[r][g] * factor);
  }
}

void weigh(const WholeAttention& task, const Parts& parts) {
  const std::int64_t groups = task.head_dim / kWide;
  for_row_tiles<kTileRows>(task.queries, [&](auto count, std::int64_t row) {
    constexpr int kRows = decltype(count)::value;
    std::int64_t g = 0;
    for (; g + kTileGroups <= groups; g += kTileGroups) {
      weigh_tile<kRows, kTileGroups>(task, parts, row, g * kWide);
    }
    for (; g < groups; ++g) weigh_tile<kRows, 1>(task, parts, row, g * kWide);
  });
}

}  // namespace

void attend_whole_words(const WholeAttention& task, float* scratch) {
  const Parts parts = cut(task, scratch);
  const float key_scale = turn_keys(task, parts);
  const float value_scale = pair_values(task, parts);
  round_queries(task, parts, key_scale);
  score(task, parts);
  softmax_rows(task, parts, value_scale);
  weigh(task, parts);
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
