// SPDX-License-Identifier: Apache-2.0
// What attention does with one block of keys whatever the cache holds: shapes, scratch, softmax.
// Included only by attention.cpp and whole_attention.cpp.
#pragma once

#include <limits>

#include "kernels/isa/lanes.h"
#include "kernels/vector_kernels.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Block {
  std::int64_t rows;
  std::int64_t head_dim;
  std::int64_t padded_dim;
  std::int64_t keys;  // of this block, 1..kKeyBlock
};

struct Scratch {
  float* keys;    // of a block, as floats
  float* values;  // the same
  float* scores;  // [rows][kKeyBlock], then probabilities
  float* q;       // [rows][padded_dim]
  float* correction;
  float* share;  // e^(a block's maximum - maximum), of caches whose probabilities are its shares
  float* codes;  // what a cache of codes needs
};

inline Scratch cut(float* memory, const Block& shape) {
  Scratch s{};
  s.keys = memory;
  s.values = s.keys + kKeyBlock * shape.padded_dim;
  s.scores = s.values + kKeyBlock * shape.padded_dim;
  s.q = s.scores + shape.rows * kKeyBlock;
  s.correction = s.q + shape.rows * shape.padded_dim;
  s.share = s.correction + shape.rows;
  s.codes = memory + round_up(s.share + shape.rows - memory, kKeyGroup);
  return s;
}

// Asks for a cache line of the next block of keys, into the second-level cache. The processor's own
// prefetching starts anew on every page: from memory, blocks of 64 keys with four rows of 64 took
// 2.0 us in F16 and 1.3 to 1.6 in Q8_0 without, 0.85 and 0.6 with (one Zen 4 core, 2026-11-22).
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Calls run(std::integral_constant-like tag, first row) over all rows, kMost at a time, then the
// rest in one tile.
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
template <int kMost, typename Run>
inline void for_row_tiles(std::int64_t rows, Run run) {
  std::int64_t first = 0;
  for (; first + kMost <= rows; first += kMost) run(RowCount<kMost>{}, first);
  run_rest<kMost - 1>(rows - first, first, run);
}

// c tanh(s / c) = c - 2c / (e^(2 s / c) + 1)
inline void cap_scores(float* scores, float softcap) {
  for (int i = 0; i < kKeyBlock; i += kLanes) {
    const Lanes e = exponential(multiply(load(scores + i), broadcast(2.0f / softcap)));
    store(scores + i,
          subtract(broadcast(softcap), divide(broadcast(2.0f * softcap), add(e, broadcast(1.0f)))));
  }
}

// Keys of one block that a row sees, [begin, end), of kKeyBlock.
struct Visible {
  std::int64_t begin;
  std::int64_t end;
};

// Scores of the other keys become minus infinity. Returns the largest.
inline float mask_and_maximum(float* scores, const Visible& visible) {
  for (std::int64_t i = 0; i < visible.begin; ++i) scores[i] = kMinusInfinity;
  for (std::int64_t i = visible.end; i < kKeyBlock; ++i) scores[i] = kMinusInfinity;
  Lanes top = load(scores);
  for (int i = kLanes; i < kKeyBlock; i += kLanes) top = maximum(top, load(scores + i));
  return largest(top);
}

// e^(scores - reference). Returns their sum.
inline float exponentials(float* scores, float reference) {
  Lanes sums = zero();
  for (int i = 0; i < kKeyBlock; i += kLanes) {
    const Lanes p = exponential(subtract(load(scores + i), broadcast(reference)));
    store(scores + i, p);
    sums = add(sums, p);
  }
  return sum(sums);
}

// Of up to kLanes rows: what was summed before times correction, plus share times what this block
// says. Side by side, because one row's maximum, factor and sum are a chain of waits.
struct SoftmaxSteps {
  float block_maximum[kLanes] = {};
  float reference[kLanes];  // of the block's exponentials

  // Relative to the new maximum, so that the share is 1, or to that of the block: then they do not
  // depend on what came before, and the largest is exactly 1. Updates running_maximum.
  template <bool kOfBlock>
  void step(std::int64_t rows, float* running_maximum, float* correction, float* share) {
    // Nothing visible yet: any finite reference keeps e^(-inf - reference) at 0.
    const auto finite = [](float maximum) { return maximum == kMinusInfinity ? 0.0f : maximum; };
    float distance[kLanes] = {};
    for (std::int64_t row = 0; row < rows; ++row) {
      const bool rises = block_maximum[row] > running_maximum[row];
      const float higher = rises ? block_maximum[row] : running_maximum[row];
      const float lower = rises ? running_maximum[row] : block_maximum[row];
      reference[row] = finite(kOfBlock ? block_maximum[row] : higher);
      distance[row] = lower - finite(higher);
    }
    store(distance, exponential(load(distance)));
    for (std::int64_t row = 0; row < rows; ++row) {
      const bool rises = block_maximum[row] > running_maximum[row];
      correction[row] = rises ? distance[row] : 1.0f;  // one of both is e^0
      share[row] = rises || !kOfBlock ? 1.0f : distance[row];
      if (rises) running_maximum[row] = block_maximum[row];
    }
  }
};

// bias: of kKeyBlock keys, those past the last one included.
inline void add_bias(const float* bias, float* scores) {
  for (int i = 0; i < kKeyBlock; i += kLanes)
    store(scores + i, add(load(scores + i), load(bias + i)));
}

inline Visible visible_keys(const AttentionTask& task, const Block& block, std::int64_t key_begin,
                            std::int64_t position) {
  const auto within = [&](std::int64_t key) {
    const std::int64_t offset = key - key_begin;
    return offset < 0 ? 0 : (offset > block.keys ? block.keys : offset);
  };
  const std::int64_t oldest = task.window > 0 ? position - task.window + 1 : 0;
  return {within(oldest), task.causal ? within(position + 1) : block.keys};
}

// Products of a row with keys -> its scores, minus infinity for keys that it does not see, and the
// largest of them. Returns what it sees.
inline Visible prepare_scores(const AttentionTask& task, const Block& block, std::int64_t key_begin,
                              std::int64_t row, float* scores, float& maximum) {
  const std::int64_t position = task.first_position + row / task.group;
  if (task.bias != nullptr) {
    add_bias(task.bias + row % task.group * task.bias_stride + key_begin - position, scores);
  }
  if (task.softcap > 0.0f) cap_scores(scores, task.softcap);
  const Visible visible = visible_keys(task, block, key_begin, position);
  maximum = mask_and_maximum(scores, visible);
  return visible;
}

// Keys that any token of a task sees, from a multiple of kKeyBlock on.
struct KeyRange {
  std::int64_t begin;
  std::int64_t end;
};
inline KeyRange seen_keys(const AttentionTask& task) {
  const std::int64_t last = task.first_position + task.tokens;
  const std::int64_t oldest = task.window > 0 ? task.first_position - task.window + 1 : 0;
  return {oldest > task.key_begin ? oldest / kKeyBlock * kKeyBlock : task.key_begin,
          task.causal && last < task.key_end ? last : task.key_end};
}

// Scores -> probabilities; keys that a row does not see get 0. meanwhile(): called a few times,
// while memory has nothing to do.
template <bool kOfBlock, typename Meanwhile>
inline void softmax_block(const AttentionTask& task, const Block& block, std::int64_t key_begin,
                          const AttentionPartial& partial, const Scratch& scratch,
                          Meanwhile meanwhile) {
  for (std::int64_t first = 0; first < block.rows; first += kLanes) {
    const std::int64_t rows = block.rows - first < kLanes ? block.rows - first : kLanes;
    float* scores = scratch.scores + first * kKeyBlock;
    SoftmaxSteps steps;
    for (std::int64_t i = 0; i < rows; ++i) {
      prepare_scores(task, block, key_begin, first + i, scores + i * kKeyBlock,
                     steps.block_maximum[i]);
      meanwhile();
    }
    float* correction = scratch.correction + first;
    float* share = scratch.share + first;
    steps.step<kOfBlock>(rows, partial.maximum + first, correction, share);
    for (std::int64_t i = 0; i < rows; ++i) {
      const float sum = exponentials(scores + i * kKeyBlock, steps.reference[i]);
      float& running_sum = partial.sum[first + i];
      running_sum = running_sum * correction[i] + share[i] * sum;
      meanwhile();
    }
  }
}

}  // namespace
}  // namespace lilliput::kernels::LILLIPUT_ISA
