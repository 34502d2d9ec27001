// SPDX-License-Identifier: Apache-2.0
// Attention: stores the new keys and values, cuts the work into tasks, joins partial results.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/pass.h"

namespace lilliput::engine {
namespace {

using kernels::AttentionPartial;
using kernels::AttentionTask;

// Rows (tokens x heads of a group) of one task: 8 tiles of 6, the widest register tile; its floats
// stay in L2.
constexpr std::int64_t kTaskRows = 48;
// Up to so many tokens there are too few tiles to share out, so that keys are cut into ranges.
constexpr std::int64_t kFewTokens = 8;
constexpr std::int64_t kShortestRange = 512;
constexpr std::int64_t kMostRanges = 64;

// Partial results of `rows` rows: maxima, sums, then weighted values.
AttentionPartial cut_partial(float* memory, std::int64_t rows) {
  return {memory, memory + rows, memory + 2 * rows};
}

}  // namespace

AttentionTiling::AttentionTiling(const Attention& attention, std::int64_t tokens,
                                 std::int64_t key_end)
    : group(attention.heads / attention.kv_heads),
      tile_tokens(std::min(tokens, std::max<std::int64_t>(1, kTaskRows / group))),
      tiles((tokens + tile_tokens - 1) / tile_tokens),
      range_length(kernels::round_up(key_end, kernels::kKeyBlock)),
      ranges(1),
      attention_(attention) {
  if (tokens > kFewTokens) return;
  range_length =
      std::max(kShortestRange,
               kernels::round_up((key_end + kMostRanges - 1) / kMostRanges, kernels::kKeyBlock));
  ranges = (key_end + range_length - 1) / range_length;
}

std::size_t AttentionTiling::row_floats() const {
  return static_cast<std::size_t>(2 + kernels::round_up(attention_.head_dim, kernels::kKeyGroup));
}

std::size_t AttentionTiling::thread_scratch_floats() const {
  const std::int64_t rows = tile_tokens * group;
  return kernels::attention_scratch_floats(rows, attention_.head_dim) +
         static_cast<std::size_t>(rows) * row_floats();
}

std::size_t AttentionTiling::partial_floats(std::int64_t batch) const {
  // A last tile that is not full has memory for all its rows: less than twice the tokens.
  return static_cast<std::size_t>(2 * std::min(batch, kFewTokens) * attention_.heads *
                                  kMostRanges) *
         row_floats();
}

void Engine::run(Pass& pass, const Attention& operation) {
  const std::int64_t tokens = pass.rows;
  const std::int64_t key_end = pass.n_past + tokens;
  const std::int64_t head_dim = operation.head_dim;
  const std::int64_t padded_dim = kernels::round_up(head_dim, kernels::kKeyGroup);
  const std::int64_t q_stride = operation.heads * head_dim;
  const std::int64_t kv_stride = operation.kv_heads * head_dim;
  const float* q = buffer(pass, operation.q);
  const float* k = buffer(pass, operation.k);
  const float* v = buffer(pass, operation.v);
  float* out = buffer(pass, operation.out);
  const AttentionTiling tiling(operation, tokens, key_end);

  const auto store_head = [&](std::int64_t kv_head, int) {
    const kernels::HeadCache cache = cache_.head(operation.layer, kv_head);
    for (std::int64_t token = 0; token < tokens; ++token) {
      const std::int64_t offset = token * kv_stride + kv_head * head_dim;
      vector_kernels_.store_key_value(cache, cache_.format(), head_dim, pass.n_past + token,
                                      k + offset, v + offset);
    }
  };
  if (tokens <= kFewTokens) {
    for (std::int64_t kv_head = 0; kv_head < operation.kv_heads; ++kv_head) store_head(kv_head, 0);
  } else {
    pass.lease.parallel_for(operation.kv_heads, store_head);
  }

  // out = sum over ranges of e^(maximum - M) weighted / sum over ranges of e^(maximum - M) sum
  const auto join = [&](std::int64_t kv_head, std::int64_t token_begin, std::int64_t row,
                        const AttentionPartial* partials, std::int64_t n) {
    float maximum = -std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < n; ++i) maximum = std::max(maximum, partials[i].maximum[row]);
    const std::int64_t token = token_begin + row / tiling.group;
    const std::int64_t head = kv_head * tiling.group + row % tiling.group;
    float* y = out + token * q_stride + head * head_dim;
    std::fill_n(y, head_dim, 0.0f);
    float total = 0.0f;
    for (std::int64_t i = 0; i < n; ++i) {
      const float factor = n == 1 ? 1.0f : std::exp(partials[i].maximum[row] - maximum);
      total += factor * partials[i].sum[row];
      const float* weighted = partials[i].weighted + row * padded_dim;
      for (std::int64_t d = 0; d < head_dim; ++d) y[d] += factor * weighted[d];
    }
    const float inverse = 1.0f / total;
    for (std::int64_t d = 0; d < head_dim; ++d) y[d] *= inverse;
  };

  const std::int64_t tile_rows = tiling.tile_tokens * tiling.group;
  const auto range_memory = [&](std::int64_t task) {
    return attention_partials_.as<float>() +
           static_cast<std::size_t>(task * tile_rows) * tiling.row_floats();
  };
  pass.lease.parallel_for(tiling.tasks(), [&](std::int64_t task, int thread) {
    const std::int64_t range = task % tiling.ranges;
    const std::int64_t kv_head = task / tiling.ranges % operation.kv_heads;
    // Later tokens see more keys: the long tasks first, so that threads end together.
    const std::int64_t tile = tiling.tiles - 1 - task / tiling.ranges / operation.kv_heads;
    const std::int64_t token_begin = tile * tiling.tile_tokens;
    const std::int64_t tile_tokens = std::min(tiling.tile_tokens, tokens - token_begin);
    const std::int64_t rows = tile_tokens * tiling.group;
    float* scratch = reinterpret_cast<float*>(thread_scratch(thread));
    const std::size_t kernel_floats = kernels::attention_scratch_floats(tile_rows, head_dim);
    float* memory = tiling.ranges == 1 ? scratch + kernel_floats : range_memory(task);
    const AttentionPartial partial = cut_partial(memory, rows);
    const AttentionTask work{q + token_begin * q_stride + kv_head * tiling.group * head_dim,
                             q_stride,
                             tile_tokens,
                             tiling.group,
                             head_dim,
                             pass.n_past + token_begin,
                             range * tiling.range_length,
                             (range + 1) * tiling.range_length,
                             operation.window,
                             operation.scale,
                             operation.softcap,
                             cache_.head(operation.layer, kv_head)};
    vector_kernels_.attend(work, cache_.format(), partial, scratch);
    if (tiling.ranges > 1) return;
    for (std::int64_t row = 0; row < rows; ++row) join(kv_head, token_begin, row, &partial, 1);
  });
  if (tiling.ranges == 1) return;
  pass.lease.parallel_for(operation.kv_heads * tiling.tiles, [&](std::int64_t index, int) {
    const std::int64_t kv_head = index % operation.kv_heads;
    const std::int64_t token_begin =
        (tiling.tiles - 1 - index / operation.kv_heads) * tiling.tile_tokens;
    const std::int64_t rows = std::min(tiling.tile_tokens, tokens - token_begin) * tiling.group;
    AttentionPartial partials[kMostRanges];
    for (std::int64_t range = 0; range < tiling.ranges; ++range) {
      partials[range] = cut_partial(range_memory(index * tiling.ranges + range), rows);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      join(kv_head, token_begin, row, partials, tiling.ranges);
    }
  });
}

}  // namespace lilliput::engine
