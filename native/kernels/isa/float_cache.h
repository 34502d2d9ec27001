// SPDX-License-Identifier: Apache-2.0
// Scores and weighted sums over keys and values that are floats. Included only by attention.cpp.
//
//   scores[row][key]   = q[row] . k[key]        outer products: sixteen keys are the lanes
//   weighted[row][dim] = correction * weighted + sum_key p[row][key] * v[key][dim]   sixteen dims
//   are the lanes
#pragma once

#include "kernels/isa/attention_block.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

// T: std::uint16_t for F16, or float.
template <typename T>
class FloatCache {
 public:
  static constexpr bool kSharesOfBlock = false;

  FloatCache(const AttentionTask& task, CacheFormat, const Block& shape, const Scratch& scratch)
      : task_(task), scratch_(scratch) {
    for (std::int64_t row = 0; row < shape.rows; ++row) {
      const float* q = task.q + row / task.group * task.q_stride + row % task.group * task.head_dim;
      for (std::int64_t d = 0; d < task.head_dim; ++d) {
        scratch.q[row * task.head_dim + d] = task.scale * q[d];
      }
    }
  }

  // Keys past the block's own count within its last run of 16 are stale: their scores are masked.
  void score(const Block& block, std::int64_t key_begin) {
    const T* keys = static_cast<const T*>(task_.cache.keys) + key_begin * block.head_dim;
    if (!converts(block)) return score_block(keys, block);
    convert(keys, round_up(block.keys, kKeyGroup) * block.head_dim, scratch_.keys);
    score_block(scratch_.keys, block);
  }

  void weigh(const Block& block, std::int64_t key_begin, float* weighted) {
    const T* values = static_cast<const T*>(task_.cache.values) + key_begin * block.padded_dim;
    if (!converts(block)) return weigh_block(values, block, weighted);
    convert(values, block.keys * block.padded_dim, scratch_.values);
    weigh_block(scratch_.values, block, weighted);
  }

  void ask_for_more() {}  // its loops ask for all of the next block

 private:
  // Accumulators of one tile: rows x groups of sixteen lanes; as many as the registers hold.
#if defined(__AVX512F__)
  static constexpr int kTileRows = 6;
  static constexpr int kTileGroups = 4;
#elif defined(__AVX2__)
  static constexpr int kTileRows = 5;
  static constexpr int kTileGroups = 1;
#elif defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kTileRows = 6;
  static constexpr int kTileGroups = 1;
#else
  static constexpr int kTileRows = 2;
  static constexpr int kTileGroups = 1;
#endif
  // With at least this many rows a block of F16 keys and values is worth converting once.
  static constexpr std::int64_t kRowsToConvertFor = 2 * kTileRows + 1;

  static bool converts(const Block& block) {
    return sizeof(T) == 2 && block.rows >= kRowsToConvertFor;
  }

  static void convert(const T* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
  }

  // scores[row][group * 16 + lane] = sum_d q[row][d] * keys[group][d][lane]
  template <int kRows, int kGroups, typename U>
  static void score_tile(const float* q, const U* keys, std::int64_t head_dim, float* scores) {
    Lanes sums[kRows][kGroups];
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGroups; ++g) sums[r][g] = zero();
    }
    for (std::int64_t d = 0; d < head_dim; ++d) {
      Lanes key[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const U* lanes = keys + (g * head_dim + d) * kLanes;
        prefetch(lanes + kKeyBlock * head_dim);
        key[g] = load(lanes);
      }
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
  template <int kRows, int kGroups, typename U>
  static void weigh_tile(const float* p, const float* correction, const U* values,
                         const Block& block, float* weighted) {
    Lanes sums[kRows][kGroups];
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGroups; ++g) {
        sums[r][g] =
            multiply(broadcast(correction[r]), load(weighted + r * block.padded_dim + g * kLanes));
      }
    }
    for (std::int64_t key = 0; key < block.keys; ++key) {
      Lanes value[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const U* lanes = values + key * block.padded_dim + g * kLanes;
        prefetch(lanes + kKeyBlock * block.padded_dim);
        value[g] = load(lanes);
      }
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

  // All groups of all rows: widest tiles first, single groups for the rest.
  template <typename U>
  void score_block(const U* keys, const Block& block) {
    const std::int64_t groups = round_up(block.keys, kKeyGroup) / kKeyGroup;
    for_row_tiles<kTileRows>(block.rows, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      const float* q = scratch_.q + row * block.head_dim;
      float* scores = scratch_.scores + row * kKeyBlock;
      std::int64_t g = 0;
      for (; g + kTileGroups <= groups; g += kTileGroups) {
        score_tile<kRows, kTileGroups>(q, keys + g * block.head_dim * kLanes, block.head_dim,
                                       scores + g * kLanes);
      }
      for (; g < groups; ++g) {
        score_tile<kRows, 1>(q, keys + g * block.head_dim * kLanes, block.head_dim,
                             scores + g * kLanes);
      }
    });
  }

  template <typename U>
  void weigh_block(const U* values, const Block& block, float* weighted) {
    const std::int64_t groups = block.padded_dim / kLanes;
    for_row_tiles<kTileRows>(block.rows, [&](auto count, std::int64_t row) {
      constexpr int kRows = decltype(count)::value;
      const float* p = scratch_.scores + row * kKeyBlock;
      float* sums = weighted + row * block.padded_dim;
      std::int64_t g = 0;
      for (; g + kTileGroups <= groups; g += kTileGroups) {
        weigh_tile<kRows, kTileGroups>(p, scratch_.correction + row, values + g * kLanes, block,
                                       sums + g * kLanes);
      }
      for (; g < groups; ++g) {
        weigh_tile<kRows, 1>(p, scratch_.correction + row, values + g * kLanes, block,
                             sums + g * kLanes);
      }
    });
  }

  const AttentionTask& task_;
  const Scratch& scratch_;
};

}  // namespace
}  // namespace lilliput::kernels::LILLIPUT_ISA
