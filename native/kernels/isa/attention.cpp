// SPDX-License-Identifier: Apache-2.0
// Attention over one kv head, block of keys by block of keys, with a running maximum and sum
// (online softmax: arXiv 1805.02867; in blocks: arXiv 2205.14135).
//
// For one block of 64 keys:
//   scores[row][key]   = scale * q[row] . k[key]        outer products: sixteen keys are the lanes
//   maximum, sum       updated; earlier results are corrected by e^(old maximum - new maximum)
//   weighted[row][dim] = correction * weighted + sum_key p[row][key] * v[key][dim]   sixteen dims
//   are the lanes
#include "kernels/isa/attention.h"

#include <limits>

#include "kernels/isa/lanes.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// Accumulators of one tile: rows x groups of sixteen lanes; as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int kTileGroups = 4;
#elif defined(__AVX2__)
constexpr int kTileRows = 5;
constexpr int kTileGroups = 1;
#else
constexpr int kTileRows = 2;
constexpr int kTileGroups = 1;
#endif
// With at least this many rows a block of float16 keys and values is worth converting once.
constexpr std::int64_t kRowsToConvertFor = 2 * kTileRows + 1;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Block {
  std::int64_t rows;
  std::int64_t head_dim;
  std::int64_t padded_dim;
  std::int64_t keys;  // of this block, 1..kKeyBlock
};

// scores[row][group * 16 + lane] = sum_d q[row][d] * keys[group][d][lane]
template <int kRows, int kGroups, typename T>
inline void score_tile(const float* q, const T* keys, std::int64_t head_dim, float* scores) {
  Lanes sums[kRows][kGroups];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) sums[r][g] = zero();
  }
  for (std::int64_t d = 0; d < head_dim; ++d) {
    Lanes key[kGroups];
    for (int g = 0; g < kGroups; ++g) key[g] = load(keys + (g * head_dim + d) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Lanes query = broadcast(q[r * head_dim + d]);
      for (int g = 0; g < kGroups; ++g) sums[r][g] = multiply_add(query, key[g], sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) store(scores + r * kKeyBlock + g * kLanes, sums[r][g]);
  }
}

// weighted[row][group * 16 + lane] = correction[row] * weighted + sum_key p[row][key] *
// values[key][...]
template <int kRows, int kGroups, typename T>
inline void value_tile(const float* p, const float* correction, const T* values, const Block& block,
                       float* weighted) {
  Lanes sums[kRows][kGroups];
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      sums[r][g] =
          multiply(broadcast(correction[r]), load(weighted + r * block.padded_dim + g * kLanes));
    }
  }
  for (std::int64_t key = 0; key < block.keys; ++key) {
    Lanes value[kGroups];
    for (int g = 0; g < kGroups; ++g) value[g] = load(values + key * block.padded_dim + g * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Lanes probability = broadcast(p[r * kKeyBlock + key]);
      for (int g = 0; g < kGroups; ++g)
        sums[r][g] = multiply_add(probability, value[g], sums[r][g]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      store(weighted + r * block.padded_dim + g * kLanes, sums[r][g]);
    }
  }
}

// All groups of `kRows` rows: widest tiles first, single groups for the rest.
template <int kRows, typename T>
inline void score_rows(const float* q, const T* keys, const Block& block, float* scores) {
  const std::int64_t groups = round_up(block.keys, kKeyGroup) / kKeyGroup;
  std::int64_t g = 0;
  for (; g + kTileGroups <= groups; g += kTileGroups) {
    score_tile<kRows, kTileGroups>(q, keys + g * block.head_dim * kLanes, block.head_dim,
                                   scores + g * kLanes);
  }
  for (; g < groups; ++g) {
    score_tile<kRows, 1>(q, keys + g * block.head_dim * kLanes, block.head_dim,
                         scores + g * kLanes);
  }
}

template <int kRows, typename T>
inline void value_rows(const float* p, const float* correction, const T* values, const Block& block,
                       float* weighted) {
  const std::int64_t groups = block.padded_dim / kLanes;
  std::int64_t g = 0;
  for (; g + kTileGroups <= groups; g += kTileGroups) {
    value_tile<kRows, kTileGroups>(p, correction, values + g * kLanes, block,
                                   weighted + g * kLanes);
  }
  for (; g < groups; ++g) {
    value_tile<kRows, 1>(p, correction, values + g * kLanes, block, weighted + g * kLanes);
  }
}

// Calls run(std::integral_constant-like tag, first row) over all rows, kTileRows at a time, then
// the rest in one tile.
template <int kRows>
struct RowCount {
  static constexpr int value = kRows;
};
template <int kRows, typename Run>
inline void run_rest(std::int64_t rest, std::int64_t first, Run run) {
  if constexpr (kRows > 0) {
    if (rest == kRows) {
      run(RowCount<kRows>{}, first);
    } else {
      run_rest<kRows - 1>(rest, first, run);
    }
  }
}
template <typename Run>
inline void for_row_tiles(std::int64_t rows, Run run) {
  std::int64_t first = 0;
  for (; first + kTileRows <= rows; first += kTileRows) run(RowCount<kTileRows>{}, first);
  run_rest<kTileRows - 1>(rows - first, first, run);
}

template <typename T>
void score_block(const float* q, const T* keys, const Block& block, float* scores) {
  for_row_tiles(block.rows, [&](auto count, std::int64_t row) {
    score_rows<decltype(count)::value>(q + row * block.head_dim, keys, block,
                                       scores + row * kKeyBlock);
  });
}

template <typename T>
void value_block(const float* p, const float* correction, const T* values, const Block& block,
                 float* weighted) {
  for_row_tiles(block.rows, [&](auto count, std::int64_t row) {
    value_rows<decltype(count)::value>(p + row * kKeyBlock, correction + row, values, block,
                                       weighted + row * block.padded_dim);
  });
}

// Scores of one row -> probabilities relative to the new maximum; keys outside [visible_begin,
// visible_end) get 0. Returns the factor that corrects what was summed under the old maximum.
float softmax_step(float* scores, std::int64_t visible_begin, std::int64_t visible_end,
                   float softcap, float* running_maximum, float* running_sum) {
  if (softcap > 0.0f) {
    for (int i = 0; i < kKeyBlock; i += kLanes) {
      // c tanh(s / c) = c - 2c / (e^(2 s / c) + 1)
      const Lanes e = exponential(multiply(load(scores + i), broadcast(2.0f / softcap)));
      store(scores + i, subtract(broadcast(softcap),
                                 divide(broadcast(2.0f * softcap), add(e, broadcast(1.0f)))));
    }
  }
  for (std::int64_t i = 0; i < visible_begin; ++i) scores[i] = kMinusInfinity;
  for (std::int64_t i = visible_end; i < kKeyBlock; ++i) scores[i] = kMinusInfinity;
  Lanes top = load(scores);
  for (int i = kLanes; i < kKeyBlock; i += kLanes) top = maximum(top, load(scores + i));
  const float block_maximum = largest(top);
  const float new_maximum = block_maximum > *running_maximum ? block_maximum : *running_maximum;
  // Nothing visible yet: any finite reference keeps e^(-inf - reference) at 0.
  const float reference = new_maximum == kMinusInfinity ? 0.0f : new_maximum;
  Lanes sums = zero();
  for (int i = 0; i < kKeyBlock; i += kLanes) {
    const Lanes p = exponential(subtract(load(scores + i), broadcast(reference)));
    store(scores + i, p);
    sums = add(sums, p);
  }
  float correction_lanes[kLanes];
  store(correction_lanes, exponential(broadcast(*running_maximum - reference)));
  *running_sum = *running_sum * correction_lanes[0] + sum(sums);
  *running_maximum = new_maximum;
  return correction_lanes[0];
}

// Floats of a block: the cache's own, or float16 converted into `converted`.
void convert(const std::uint16_t* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
}

struct Scratch {
  float* q;
  float* scores;
  float* keys;
  float* values;
  float* correction;
};

Scratch cut(float* memory, const Block& shape) {
  Scratch s{};
  s.keys = memory;
  s.values = s.keys + kKeyBlock * shape.head_dim;
  s.scores = s.values + kKeyBlock * shape.padded_dim;
  s.q = s.scores + shape.rows * kKeyBlock;
  s.correction = s.q + shape.rows * shape.head_dim;
  return s;
}

// bias: of kKeyBlock keys, those past the last one included.
void add_bias(const float* bias, float* scores) {
  for (int i = 0; i < kKeyBlock; i += kLanes)
    store(scores + i, add(load(scores + i), load(bias + i)));
}

void softmax_block(const AttentionTask& task, const Block& block, std::int64_t key_begin,
                   const AttentionPartial& partial, const Scratch& scratch) {
  for (std::int64_t row = 0; row < block.rows; ++row) {
    const std::int64_t position = task.first_position + row / task.group;
    if (task.bias != nullptr) {
      add_bias(task.bias + row % task.group * task.bias_stride + key_begin - position,
               scratch.scores + row * kKeyBlock);
    }
    const std::int64_t oldest = task.window > 0 ? position - task.window + 1 : 0;
    const auto within = [&](std::int64_t key) {
      const std::int64_t offset = key - key_begin;
      return offset < 0 ? 0 : (offset > block.keys ? block.keys : offset);
    };
    const std::int64_t visible_begin = within(oldest);
    const std::int64_t visible_end = task.causal ? within(position + 1) : block.keys;
    scratch.correction[row] =
        softmax_step(scratch.scores + row * kKeyBlock, visible_begin, visible_end, task.softcap,
                     partial.maximum + row, partial.sum + row);
  }
}

// Keys past the block's own count within its last group of 16 are stale: their scores are masked,
// their values unread.
template <typename T>
void attend_over(const AttentionTask& task, Block block, const AttentionPartial& partial,
                 const Scratch& scratch) {
  const std::int64_t last = task.first_position + task.tokens;
  const std::int64_t key_end = task.causal && last < task.key_end ? last : task.key_end;
  std::int64_t key_begin = task.key_begin;
  const std::int64_t oldest = task.window > 0 ? task.first_position - task.window + 1 : 0;
  if (oldest > key_begin) key_begin = oldest / kKeyBlock * kKeyBlock;
  for (; key_begin < key_end; key_begin += kKeyBlock) {
    block.keys = key_end - key_begin < kKeyBlock ? key_end - key_begin : kKeyBlock;
    const T* keys = static_cast<const T*>(task.cache.keys) + key_begin * block.head_dim;
    const T* values = static_cast<const T*>(task.cache.values) + key_begin * block.padded_dim;
    const bool converts = sizeof(T) == 2 && block.rows >= kRowsToConvertFor;
    if constexpr (sizeof(T) == 2) {
      if (converts) {
        convert(keys, round_up(block.keys, kKeyGroup) * block.head_dim, scratch.keys);
        convert(values, block.keys * block.padded_dim, scratch.values);
      }
    }
    if (converts) {
      score_block(scratch.q, scratch.keys, block, scratch.scores);
    } else {
      score_block(scratch.q, keys, block, scratch.scores);
    }
    softmax_block(task, block, key_begin, partial, scratch);
    if (converts) {
      value_block(scratch.scores, scratch.correction, scratch.values, block, partial.weighted);
    } else {
      value_block(scratch.scores, scratch.correction, values, block, partial.weighted);
    }
  }
}

template <typename T>
T to_cache(float value);
template <>
inline float to_cache<float>(float value) {
  return value;
}
template <>
inline std::uint16_t to_cache<std::uint16_t>(float value) {
  return float_to_half(value);
}

template <typename T>
void store_as(const HeadCache& cache, std::int64_t head_dim, std::int64_t position,
              const float* key, const float* value) {
  const std::int64_t padded_dim = round_up(head_dim, kKeyGroup);
  T* keys = static_cast<T*>(cache.keys) + position / kKeyGroup * kKeyGroup * head_dim +
            position % kKeyGroup;
  T* values = static_cast<T*>(cache.values) + position * padded_dim;
  for (std::int64_t d = 0; d < head_dim; ++d) keys[d * kKeyGroup] = to_cache<T>(key[d]);
  for (std::int64_t d = 0; d < head_dim; ++d) values[d] = to_cache<T>(value[d]);
  for (std::int64_t d = head_dim; d < padded_dim; ++d) values[d] = T{};
}

}  // namespace

void store_key_value(const HeadCache& cache, CacheFormat format, std::int64_t head_dim,
                     std::int64_t position, const float* key, const float* value) {
  if (format == CacheFormat::f16) {
    store_as<std::uint16_t>(cache, head_dim, position, key, value);
  } else {
    store_as<float>(cache, head_dim, position, key, value);
  }
}

void attend(const AttentionTask& task, CacheFormat format, const AttentionPartial& partial,
            float* scratch) {
  Block block{task.tokens * task.group, task.head_dim, round_up(task.head_dim, kKeyGroup), 0};
  const Scratch parts = cut(scratch, block);
  for (std::int64_t row = 0; row < block.rows; ++row) {
    partial.maximum[row] = kMinusInfinity;
    partial.sum[row] = 0.0f;
    const float* q = task.q + row / task.group * task.q_stride + row % task.group * task.head_dim;
    for (std::int64_t d = 0; d < task.head_dim; ++d) {
      parts.q[row * task.head_dim + d] = task.scale * q[d];
    }
  }
  for (std::int64_t i = 0; i < block.rows * block.padded_dim; ++i) partial.weighted[i] = 0.0f;
  if (format == CacheFormat::f16) {
    attend_over<std::uint16_t>(task, block, partial, parts);
  } else {
    attend_over<float>(task, block, partial, parts);
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
