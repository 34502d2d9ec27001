// SPDX-License-Identifier: Apache-2.0
// Attention of queries that see every key, straight from the rows of a pass: keys are turned so that
// sixteen of them are the lanes, scores of a row are complete before its softmax, nothing is kept.
#include <algorithm>

#include "kernels/isa/attention.h"
#include "kernels/isa/attention_block.h"
#include "simd/simd.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Accumulators of one tile: rows x groups of sixteen lanes, as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int kTileGroups = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 5;
constexpr int kTileGroups = 1;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kTileRows = 6;
constexpr int kTileGroups = 1;
#else
constexpr int kTileRows = 2;
constexpr int kTileGroups = 1;
#endif
// Keys whose turned floats, or values, stay in the first-level cache: 16 KB of 64 dimensions.
constexpr std::int64_t kCachedKeys = 64;

struct Parts {
  float* keys;          // [groups of 16 keys][head_dim][16]
  float* values;        // [keys][head_dim]
  float* scores;        // [queries][padded keys]
  float* inverse;       // of each row's sum
  std::int64_t stride;  // of scores
};

Parts cut(const WholeAttention& task, float* scratch) {
  const std::int64_t padded = round_up(task.keys, kLanes);
  Parts parts{scratch, nullptr, nullptr, nullptr, padded};
  parts.values = parts.keys + padded * task.head_dim;
  parts.scores = parts.values + padded * task.head_dim;
  parts.inverse = parts.scores + task.queries * padded;
  return parts;
}

// keys[group][d][lane] = k[group * 16 + lane][d]; lanes past the last key are 0.
void turn_keys(const WholeAttention& task, float* keys) {
  constexpr int kWide = simd::kLanes;
  for (std::int64_t first = 0; first < round_up(task.keys, kLanes); first += kWide) {
    float* to = keys + first / kLanes * task.head_dim * kLanes + first % kLanes;
    for (std::int64_t d = 0; d < task.head_dim; d += kWide) {
      simd::Int rows[kWide];
      for (int i = 0; i < kWide; ++i) {
        rows[i] = first + i < task.keys ? simd::load_int(task.k + (first + i) * task.kv_stride + d)
                                        : simd::Int{};
      }
      simd::transpose(rows);
      for (int i = 0; i < kWide; ++i) simd::store_int(to + (d + i) * kLanes, rows[i]);
    }
  }
}

// scores[row][group * 16 + lane] = q[row] . keys[group][.][lane]
template <int kRows, int kGroups>
inline void score_tile(const float* q, std::int64_t q_stride, const float* keys,
                       std::int64_t head_dim, float* scores, std::int64_t stride) {
  Lanes sums[kRows][kGroups];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) sums[r][g] = zero();
  }
  for (std::int64_t d = 0; d < head_dim; ++d) {
    Lanes key[kGroups];
    for (int g = 0; g < kGroups; ++g) key[g] = load(keys + (g * head_dim + d) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Lanes query = broadcast(q[r * q_stride + d]);
      for (int g = 0; g < kGroups; ++g) sums[r][g] = multiply_add(query, key[g], sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) store(scores + r * stride + g * kLanes, sums[r][g]);
  }
}

void score(const WholeAttention& task, const Parts& parts) {
  const std::int64_t groups = round_up(task.keys, kLanes) / kLanes;
  for (std::int64_t begin = 0; begin < groups; begin += kCachedKeys / kLanes) {
    const std::int64_t end = std::min(groups, begin + kCachedKeys / kLanes);
    for_row_tiles<kTileRows>(task.queries, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      const float* q = task.q + row * task.q_stride;
      float* scores = parts.scores + row * parts.stride;
      const auto keys = [&](std::int64_t g) { return parts.keys + g * task.head_dim * kLanes; };
      std::int64_t g = begin;
      for (; g + kTileGroups <= end; g += kTileGroups) {
        score_tile<kRows, kTileGroups>(q, task.q_stride, keys(g), task.head_dim,
                                       scores + g * kLanes, parts.stride);
      }
      for (; g < end; ++g) {
        score_tile<kRows, 1>(q, task.q_stride, keys(g), task.head_dim, scores + g * kLanes,
                             parts.stride);
      }
    });
  }
}

// Scores -> e^(scale * score + bias - their maximum); 1 / sum beside them.
void softmax_rows(const WholeAttention& task, const Parts& parts) {
  const Lanes scale = broadcast(task.scale);
  for (std::int64_t row = 0; row < task.queries; ++row) {
    float* scores = parts.scores + row * parts.stride;
    const float* bias = task.bias == nullptr ? nullptr : task.bias - (task.first_query + row);
    Lanes top = broadcast(kMinusInfinity);
    for (std::int64_t i = 0; i < parts.stride; i += kLanes) {
      Lanes s = multiply(load(scores + i), scale);
      if (bias != nullptr) s = add(s, load(bias + i));
      store(scores + i, s);
      // What lies past the last key must not count.
      if (i + kLanes > task.keys) {
        for (std::int64_t j = task.keys; j < i + kLanes; ++j) scores[j] = kMinusInfinity;
        s = load(scores + i);
      }
      top = maximum(top, s);
    }
    const Lanes reference = broadcast(largest(top));
    Lanes sums = zero();
    for (std::int64_t i = 0; i < parts.stride; i += kLanes) {
      const Lanes p = exponential(subtract(load(scores + i), reference));
      store(scores + i, p);
      sums = add(sums, p);
    }
    parts.inverse[row] = 1.0f / sum(sums);
  }
}

// Some keys and rows of one call.
struct Weighed {
  const float* p;  // of the first row and key
  std::int64_t stride;
  const float* values;
  std::int64_t keys;
  std::int64_t head_dim;
  bool continues;        // what out holds is added
  const float* inverse;  // of the rows' sums after the last keys, otherwise null
  float* out;
  std::int64_t out_stride;
};

// out[row] = sum over all keys of p[row][key] * values[key] / the row's sum; dimensions from `first`
template <int kRows, int kGroups>
inline void weigh_tile(const Weighed& part, std::int64_t first) {
  float* out = part.out + first;
  Lanes sums[kRows][kGroups];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      sums[r][g] = part.continues ? load(out + r * part.out_stride + g * kLanes) : zero();
    }
  }
  const float* values = part.values + first;
  for (std::int64_t key = 0; key < part.keys; ++key, values += part.head_dim) {
    Lanes value[kGroups];
    for (int g = 0; g < kGroups; ++g) value[g] = load(values + g * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Lanes probability = broadcast(part.p[r * part.stride + key]);
      for (int g = 0; g < kGroups; ++g)
        sums[r][g] = multiply_add(probability, value[g], sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const Lanes factor = broadcast(part.inverse == nullptr ? 1.0f : part.inverse[r]);
    for (int g = 0; g < kGroups; ++g) {
      store(out + r * part.out_stride + g * kLanes, multiply(sums[r][g], factor));
    }
  }
}

void weigh(const WholeAttention& task, const Parts& parts) {
  const std::int64_t groups = task.head_dim / kLanes;
  for (std::int64_t begin = 0; begin < task.keys; begin += kCachedKeys) {
    const std::int64_t keys = std::min(kCachedKeys, task.keys - begin);
    const bool is_last = begin + keys == task.keys;
    for_row_tiles<kTileRows>(task.queries, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      const Weighed part{parts.scores + row * parts.stride + begin,
                         parts.stride,
                         parts.values + begin * task.head_dim,
                         keys,
                         task.head_dim,
                         begin > 0,
                         is_last ? parts.inverse + row : nullptr,
                         task.out + row * task.q_stride,
                         task.q_stride};
      std::int64_t g = 0;
      for (; g + kTileGroups <= groups; g += kTileGroups) {
        weigh_tile<kRows, kTileGroups>(part, g * kLanes);
      }
      for (; g < groups; ++g) weigh_tile<kRows, 1>(part, g * kLanes);
    });
  }
}

}  // namespace

void attend_whole(const WholeAttention& task, float* scratch) {
  const Parts parts = cut(task, scratch);
  turn_keys(task, parts.keys);
  // Rows of a pass lie a multiple of a page's fraction apart and would share a few cache sets.
  for (std::int64_t key = 0; key < task.keys; ++key) {
    std::copy_n(task.v + key * task.kv_stride, task.head_dim, parts.values + key * task.head_dim);
  }
  score(task, parts);
  softmax_rows(task, parts);
  weigh(task, parts);
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
