// SPDX-License-Identifier: Apache-2.0
// Attention of many tokens over an F16 cache in integers of 16 bits: an instruction multiplies two of
// them a lane where it multiplies one float. Every row and every key has a scale of its own, so that
// what a token gets does not depend on what else its pass, its tile or its block of keys holds.
//
//   q'[row], k'[key]   rounded so that their Euclidean norms are 32767: no sum leaves 32 bits
//   scores[row][key]   = factor[row] * factor[key] * sum_d q' k'
//   v'[key]            rounded so that its largest magnitude is 8191
//   p[row][key]        = e^(score - the row's largest in this block), to 2^-18
//   p'[row][key]       = round(p * scale[row] * top[key] / most), top[key] the largest magnitude of
//                        v[key] and most the largest top of the block up to the last key that the row
//                        sees; scale[row] = the lesser of 32767 and 260000 / sum_key p: again no sum
//                        leaves 32 bits
//   weighted[row][dim] = correction * weighted + share * most / (8191 scale) * sum_key p' v'
//
// Roundings are of half a step at most: outputs of random heads of 64 are 1.7e-4 from those of floats
// over the same cache (root mean square), which F16 holds 3.7e-4 from exact ones.
#include <cmath>
#include <limits>

#include "kernels/isa/attention.h"
#include "kernels/isa/attention_block.h"
#include "kernels/isa/word_products.h"
#include "kernels/isa/word_scale.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

using simd::Float;
using simd::Int;
constexpr int kVectors = static_cast<int>(kKeyBlock) / kWide;
constexpr float kTopWeight = 32767.0f;
constexpr float kTopValue = 8191.0f;
// (260000 + half a step for each of 64 keys) * 8191 < 2^31
constexpr float kMostWeights = 260000.0f;

struct Words {
  std::int32_t* keys;    // [groups of kWide keys][dim_pairs][kWide]
  std::int32_t* values;  // [kKeyBlock / 2][padded_dim]
  std::int32_t* q;       // [rows][dim_pairs]: dimensions i and i + dim_pairs
  float* scores;         // [rows of a part][kKeyBlock]; then kKeyBlock / 2 words of each row
  float* q_factor;       // [rows]
  float* step;           // [rows of a part]: what a row's integer sums over values are worth
  float* key_factor;     // [kKeyBlock]
  float* value_top;      // [kKeyBlock]: largest magnitude, 0 where there is no key
  float* value_most;     // [kKeyBlock]: largest of those up to a key; NaN where one is not finite
  std::int64_t dim_pairs;
  std::int64_t padded_dim;
};

Words cut(const AttentionTask& task, std::int64_t part_rows, float* memory) {
  Words words{};
  const std::int64_t rows = task.tokens * task.group;
  words.dim_pairs = task.head_dim / 2;
  words.padded_dim = round_up(task.head_dim, kKeyGroup);
  words.keys = reinterpret_cast<std::int32_t*>(memory);
  words.values = words.keys + kKeyBlock * words.dim_pairs;
  words.scores = memory + kKeyBlock * (words.dim_pairs + words.padded_dim / 2);
  words.key_factor = words.scores + part_rows * kKeyBlock;
  words.value_top = words.key_factor + kKeyBlock;
  words.value_most = words.value_top + kKeyBlock;
  words.q = reinterpret_cast<std::int32_t*>(words.value_most + kKeyBlock);
  words.q_factor = words.value_most + kKeyBlock + rows * words.dim_pairs;
  words.step = words.q_factor + rows;
  return words;
}

void take_query(const AttentionTask& task, std::int64_t row, const Words& words) {
  const float* low = task.q + row / task.group * task.q_stride + row % task.group * task.head_dim;
  const float* high = low + words.dim_pairs;
  Lanes lanes = zero();
  std::int64_t d = 0;
  for (; d + kLanes <= task.head_dim; d += kLanes) {
    lanes = multiply_add(load(low + d), load(low + d), lanes);
  }
  float squares = sum(lanes);
  for (; d < task.head_dim; ++d) squares += low[d] * low[d];
  const WordScale scale = word_scale(squares);
  words.q_factor[row] = scale.to_values * task.scale;
  std::int32_t* to = words.q + row * words.dim_pairs;
  std::int64_t i = 0;
  for (; i + kWide <= words.dim_pairs; i += kWide) {
    const Float to_codes = simd::broadcast(scale.to_codes);
    simd::store_int(to + i, simd::two_words(simd::round_to_int(simd::load(low + i) * to_codes),
                                            simd::round_to_int(simd::load(high + i) * to_codes)));
  }
  for (; i < words.dim_pairs; ++i) {
    const auto code = [&](float x) { return static_cast<std::int32_t>(std::nearbyint(x)); };
    const auto upper = static_cast<std::uint32_t>(code(high[i] * scale.to_codes));
    to[i] = static_cast<std::int32_t>((code(low[i] * scale.to_codes) & 0xffff) | (upper << 16));
  }
}

// Runs of sixteen keys, those past the last one stale: their scores are masked.
void take_keys(const AttentionTask& task, std::int64_t key_begin, std::int64_t keys,
               const Words& words) {
  constexpr std::int64_t kLine = 2 * kKeyGroup;  // bytes of one dimension of a run
  const std::int64_t run_bytes = kLine * task.head_dim;
  const auto* runs =
      static_cast<const std::uint8_t*>(task.cache.keys) + key_begin / kKeyGroup * run_bytes;
  for (std::int64_t first = 0; first < keys; first += kWide) {
    const std::uint8_t* low = runs + first / kKeyGroup * run_bytes + 2 * (first % kKeyGroup);
    const std::uint8_t* high = low + words.dim_pairs * kLine;
    Float squares_low = simd::zero();
    Float squares_high = simd::zero();
    for (std::int64_t i = 0; i < words.dim_pairs * kLine; i += kLine) {
      prefetch(low + 2 * i + kKeyBlock / kKeyGroup * run_bytes);
      squares_low = simd::fma(simd::load_half(low + i), simd::load_half(low + i), squares_low);
      squares_high = simd::fma(simd::load_half(high + i), simd::load_half(high + i), squares_high);
    }
    float codes_of[kWide];
    simd::store(codes_of, squares_low + squares_high);
    for (int i = 0; i < kWide; ++i) {
      const WordScale scale = word_scale(codes_of[i]);
      codes_of[i] = scale.to_codes;
      words.key_factor[first + i] = scale.to_values;
    }
    const Float to_codes = simd::load(codes_of);
    std::int32_t* to = words.keys + first * words.dim_pairs;
    for (std::int64_t i = 0; i < words.dim_pairs; ++i) {
      simd::store_int(
          to + i * kWide,
          simd::two_words(simd::round_to_int(simd::load_half(low + i * kLine) * to_codes),
                          simd::round_to_int(simd::load_half(high + i * kLine) * to_codes)));
    }
  }
}

// Largest magnitudes of kWide values -> value_top; their inverses times kTopValue -> to_codes.
void measure_values(const std::uint8_t* values, std::int64_t first, const Words& words,
                    float* to_codes) {
  Int largest_bits[kWide];
  const std::int64_t value_bytes = 2 * words.padded_dim;
  for (int i = 0; i < kWide; ++i) {
    const std::uint8_t* value = values + (first + i) * value_bytes;
    Int bits{};
    for (std::int64_t d = 0; d < words.padded_dim; d += kWide) {
      const Int magnitude = (Int)simd::absolute(simd::load_half(value + 2 * d));
      bits = magnitude > bits ? magnitude : bits;
    }
    largest_bits[i] = bits;
  }
  simd::transpose(largest_bits);
  Int bits = largest_bits[0];
  for (int i = 1; i < kWide; ++i) bits = largest_bits[i] > bits ? largest_bits[i] : bits;
  simd::store(words.value_top + first, (Float)bits);
  for (std::int64_t i = first; i < first + kWide; ++i) {
    const float top = words.value_top[i];
    to_codes[i] = top > 0.0f && std::isfinite(top) ? kTopValue / top : 0.0f;
  }
}

// Words of two values, as their weights will lie.
void take_values(const AttentionTask& task, std::int64_t key_begin, std::int64_t keys,
                 const Words& words) {
  const std::int64_t value_bytes = 2 * words.padded_dim;
  const auto* values =
      static_cast<const std::uint8_t*>(task.cache.values) + key_begin * value_bytes;
  float to_codes[kKeyBlock] = {};
  const std::int64_t present = round_up(keys, kKeyGroup);
  for (std::int64_t first = 0; first < present; first += kWide) {
    measure_values(values, first, words, to_codes);
  }
  for (std::int64_t key = keys; key < kKeyBlock; ++key) words.value_top[key] = 0.0f;
  float most = 0.0f;
  for (std::int64_t key = 0; key < kKeyBlock; ++key) {
    const float top = words.value_top[key];
    if (!std::isfinite(top)) most = std::numeric_limits<float>::quiet_NaN();
    if (top > most) most = top;
    words.value_most[key] = most;
  }
  for (std::int64_t pair = 0; pair < round_up(keys, kPairBlock) / 2; ++pair) {
    const std::int64_t key = pair / kWide * kPairBlock + pair % kWide;
    const std::uint8_t* low = values + key * value_bytes;
    // Keys of a run that is not there are those of the last that is, times 0.
    const std::uint8_t* high = key + kWide < present ? low + kWide * value_bytes : low;
    const Float low_codes = simd::broadcast(to_codes[key]);
    const Float high_codes = simd::broadcast(to_codes[key + kWide]);
    for (std::int64_t d = 0; d < words.padded_dim; d += kWide) {
      prefetch(low + 2 * d + kKeyBlock * value_bytes);
      prefetch(high + 2 * d + kKeyBlock * value_bytes);
      simd::store_int(
          words.values + pair * words.padded_dim + d,
          simd::two_words(simd::round_to_int(simd::load_half(low + 2 * d) * low_codes),
                          simd::round_to_int(simd::load_half(high + 2 * d) * high_codes)));
    }
  }
}

// The tokens of a task that go through a block of keys together, and what they see of it.
struct Part {
  AttentionTask task;
  Block block;
  std::int64_t first_row;  // in the whole task
  AttentionPartial partial;
};

void score(const Part& part, const Words& words) {
  const std::int64_t pairs = words.dim_pairs;
  const std::int64_t groups = round_up(part.block.keys, kWide) / kWide;
  for_tiles(
      part.block.rows, groups, [&](auto rows, auto wide, std::int64_t row, std::int64_t group) {
        constexpr int kRows = decltype(rows)::value;
        constexpr int kGroups = decltype(wide)::value;
        Int sums[kRows][kGroups];
        multiply_words(words.q + (part.first_row + row) * pairs, pairs,
                       words.keys + group * pairs * kWide, pairs * kWide, kWide, pairs, sums);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Float factor = simd::broadcast(words.q_factor[part.first_row + row + r]);
#pragma GCC unroll 4
          for (int g = 0; g < kGroups; ++g) {
            const std::int64_t key = (group + g) * kWide;
            simd::store(words.scores + (row + r) * kKeyBlock + key,
                        simd::to_float(sums[r][g]) * (factor * simd::load(words.key_factor + key)));
          }
        }
      });
}

// e^x for x <= 0, with relative error below 3e-6: 2^n times a polynomial of degree 4, which has the
// least largest error, for the rest of x / ln 2, |rest| <= 1/2. Below e^-69 what that is; NaN for the
// NaNs of `word_scale`, whose low bits are 0.
inline Float falling_exponential(Float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Float y = simd::max(simd::broadcast(-100.0f), x * simd::broadcast(1.44269504f));
  const Float n_and_magic = y + simd::broadcast(kMagic);
  const Float rest = y - (n_and_magic - simd::broadcast(kMagic));
  Float p = simd::broadcast(0.0095701f);
  for (const float coefficient : {0.05591786f, 0.24024744f, 0.6931218f, 0.9999993f}) {
    p = simd::fma(p, rest, simd::broadcast(coefficient));
  }
  return (Float)((Int)p + ((Int)n_and_magic << 23));
}

// Scores of a row -> its weights. Returns their sum.
float weigh_keys(float* scores, float reference) {
  Float sums = simd::zero();
  for (int v = 0; v < kVectors; ++v) {
    const Float p =
        falling_exponential(simd::load(scores + v * kWide) - simd::broadcast(reference));
    simd::store(scores + v * kWide, p);
    sums += p;
  }
  return simd::sum(sums);
}

// Weights of a row -> their words in the same place.
void round_weights(float* weights, float factor, const float* value_top) {
  auto* to = reinterpret_cast<std::int32_t*>(weights);
  for (int v = 0; v < kVectors; v += 2) {
    const auto codes = [&](int vector) {
      const Float top = simd::load(value_top + vector * kWide) * simd::broadcast(factor);
      return simd::round_to_int(simd::load(weights + vector * kWide) * top);
    };
    simd::store_int(to + v / 2 * kWide, simd::two_words(codes(v), codes(v + 1)));
  }
}

// Rows side by side, because one row's sum and factors are a chain of waits.
struct WeightScales {
  float sum[kLanes] = {};   // of weights
  float most[kLanes] = {};  // of values
  float factor[kLanes];     // what weights times largest magnitudes of values are rounded after
  float step[kLanes];       // what products of words are worth

  void find() {
    const Lanes scale = minimum(broadcast(kTopWeight), divide(broadcast(kMostWeights), load(sum)));
    const Lanes tops = load(most);
    store(step, divide(tops, multiply(scale, broadcast(kTopValue))));
    store(factor, divide(scale, maximum(broadcast(0x1p-60f), tops)));  // F16 ends at 2^-24
  }
};

void softmax(const Part& part, std::int64_t key_begin, const Words& words, float* correction) {
  const AttentionTask& task = part.task;
  for (std::int64_t first = 0; first < part.block.rows; first += kLanes) {
    const std::int64_t rows = part.block.rows - first < kLanes ? part.block.rows - first : kLanes;
    float* scores = words.scores + first * kKeyBlock;
    SoftmaxSteps steps;
    WeightScales scales;
    for (std::int64_t i = 0; i < rows; ++i) {
      const Visible visible = prepare_scores(task, part.block, key_begin, first + i,
                                             scores + i * kKeyBlock, steps.block_maximum[i]);
      scales.most[i] = visible.end > 0 ? words.value_most[visible.end - 1] : 0.0f;
    }
    float share[kLanes];
    steps.step<true>(rows, part.partial.maximum + first, correction + first, share);
    for (std::int64_t i = 0; i < rows; ++i) {
      scales.sum[i] = weigh_keys(scores + i * kKeyBlock, steps.reference[i]);
    }
    scales.find();
    for (std::int64_t i = 0; i < rows; ++i) {
      round_weights(scores + i * kKeyBlock, scales.factor[i], words.value_top);
      float& running_sum = part.partial.sum[first + i];
      running_sum = running_sum * correction[first + i] + share[i] * scales.sum[i];
      words.step[first + i] = share[i] * scales.step[i];
    }
  }
}

void weigh(const Part& part, const Words& words, const float* correction) {
  const std::int64_t stride = words.padded_dim;
  const auto* weights = reinterpret_cast<const std::int32_t*>(words.scores);
  const std::int64_t count = round_up(part.block.keys, kPairBlock) / 2;
  for_tiles(part.block.rows, stride / kWide,
            [&](auto rows, auto wide, std::int64_t row, std::int64_t group) {
              constexpr int kRows = decltype(rows)::value;
              constexpr int kGroups = decltype(wide)::value;
              Int sums[kRows][kGroups];
              multiply_words(weights + row * kKeyBlock, kKeyBlock, words.values + group * kWide,
                             kWide, stride, count, sums);
#pragma GCC unroll 6
              for (int r = 0; r < kRows; ++r) {
                const Float step = simd::broadcast(words.step[row + r]);
                const Float before = simd::broadcast(correction[row + r]);
                float* to = part.partial.weighted + (row + r) * stride + group * kWide;
#pragma GCC unroll 4
                for (int g = 0; g < kGroups; ++g) {
                  simd::store(to + g * kWide, simd::fma(simd::to_float(sums[r][g]), step,
                                                        simd::load(to + g * kWide) * before));
                }
              }
            });
}

// Tokens of a task from `token` on; whether they see any of the block at key_begin.
bool part_of(const AttentionTask& task, std::int64_t token, std::int64_t tokens,
             std::int64_t key_begin, const AttentionPartial& partial, Part& part) {
  part.task = task;
  part.task.tokens = tokens;
  part.task.first_position += token;
  part.first_row = token * task.group;
  const std::int64_t padded_dim = round_up(task.head_dim, kKeyGroup);
  part.partial = {partial.maximum + part.first_row, partial.sum + part.first_row,
                  partial.weighted + part.first_row * padded_dim};
  const std::int64_t end = part.task.first_position + tokens;
  std::int64_t keys = (task.causal && end < task.key_end ? end : task.key_end) - key_begin;
  if (keys > kKeyBlock) keys = kKeyBlock;
  part.block = {tokens * task.group, task.head_dim, padded_dim, keys};
  const std::int64_t oldest = task.window > 0 ? part.task.first_position - task.window + 1 : 0;
  return keys > 0 && oldest < key_begin + kKeyBlock;
}

}  // namespace

void attend_words(const AttentionTask& task, const AttentionPartial& partial, float* scratch) {
  const std::int64_t rows = task.tokens * task.group;
  const std::int64_t part_tokens = word_part_tokens(task.group);
  const std::int64_t part_rows = part_tokens * task.group;
  const Words words = cut(task, part_rows, scratch);
  float* correction = words.step + part_rows;
  for (std::int64_t row = 0; row < rows; ++row) {
    take_query(task, row, words);
    partial.maximum[row] = kMinusInfinity;
    partial.sum[row] = 0.0f;
  }
  for (std::int64_t i = 0; i < rows * words.padded_dim; ++i) partial.weighted[i] = 0.0f;
  const KeyRange range = seen_keys(task);
  for (std::int64_t key_begin = range.begin; key_begin < range.end; key_begin += kKeyBlock) {
    const std::int64_t left = range.end - key_begin;
    const std::int64_t keys = left < kKeyBlock ? left : kKeyBlock;
    take_keys(task, key_begin, keys, words);
    take_values(task, key_begin, keys, words);
    for (std::int64_t token = 0; token < task.tokens; token += part_tokens) {
      const std::int64_t left_tokens = task.tokens - token;
      Part part;
      if (!part_of(task, token, left_tokens < part_tokens ? left_tokens : part_tokens, key_begin,
                   partial, part)) {
        continue;
      }
      score(part, words);
      softmax(part, key_begin, words, correction);
      weigh(part, words, correction);
    }
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
