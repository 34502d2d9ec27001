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
// Of one task in words: those of a block of keys are made once for all of them.
constexpr std::int64_t kWordTaskRows = 192;
// Up to so many tokens there are too few tiles to share out, so that keys are cut into ranges.
constexpr std::int64_t kFewTokens = 8;
// Ranges of all kv heads together that keep threads busy, where they need not be shorter than
// kShortestRange; longer ones than kLongRange are cut even so. Each range encodes its queries anew.
constexpr std::int64_t kTasksWorthHaving = 4;
constexpr std::int64_t kShortestRange = 128;
constexpr std::int64_t kLongRange = 1024;
constexpr std::int64_t kMostRanges = 64;

// Multiplications of scores below which one thread ends sooner (about 10 µs).
constexpr std::int64_t kWorkWorthSharing = 30'000;

// Partial results of `rows` rows: maxima, sums, then weighted values.
AttentionPartial cut_partial(float* memory, std::int64_t rows) {
  return {memory, memory + rows, memory + 2 * rows};
}

std::int64_t tokens_of_task(std::int64_t group, bool in_words) {
  return std::max<std::int64_t>(1, (in_words ? kWordTaskRows : kTaskRows) / group);
}

}  // namespace

AttentionTiling::AttentionTiling(const Attention& attention, std::int64_t tokens, AttentionWay way,
                                 std::int64_t key_end)
    : in_words(way.takes_words && !way.separate && tokens > kFewTokens &&
               attention.head_dim % 2 == 0),
      group(attention.heads / attention.kv_heads),
      tile_tokens(way.separate ? 1 : std::min(tokens, tokens_of_task(group, in_words))),
      tiles((tokens + tile_tokens - 1) / tile_tokens),
      range_length(kernels::round_up(key_end, kernels::kKeyBlock)),
      ranges(1),
      attention_(attention) {
  if (tokens > kFewTokens) return;
  const auto cut = [&](std::int64_t pieces) {
    return kernels::round_up((key_end + pieces - 1) / pieces, kernels::kKeyBlock);
  };
  const std::int64_t wanted = (kTasksWorthHaving + attention.kv_heads - 1) / attention.kv_heads;
  range_length = std::clamp(cut(wanted), kShortestRange, kLongRange);
  range_length = std::max(range_length, cut(kMostRanges));
  ranges = (key_end + range_length - 1) / range_length;
}

std::size_t AttentionTiling::row_floats() const {
  return static_cast<std::size_t>(2 + kernels::round_up(attention_.head_dim, kernels::kKeyGroup));
}

std::size_t AttentionTiling::kernel_floats(std::int64_t tokens) const {
  const std::int64_t head_dim = attention_.head_dim;
  return in_words ? kernels::word_attention_floats(tokens, group, head_dim)
                  : kernels::attention_scratch_floats(tokens * group, head_dim);
}

std::size_t AttentionTiling::thread_scratch_floats() const {
  return kernel_floats(tile_tokens) + static_cast<std::size_t>(tile_tokens * group) * row_floats();
}

std::size_t AttentionTiling::partial_floats(std::int64_t batch) const {
  // A last tile that is not full has memory for all its rows: less than twice the tokens.
  return static_cast<std::size_t>(2 * std::min(batch, kFewTokens) * attention_.heads *
                                  kMostRanges) *
         row_floats();
}

// One attention operation of one pass.
struct Engine::AttentionRun {
  // The tokens and the kv head of one tile.
  struct Tile {
    std::int64_t kv_head;
    std::int64_t token_begin;
    std::int64_t tokens;
  };

  Engine& engine;
  const Pass& pass;
  const Attention& operation;
  bool separate;  // each token reads the cache of its own sequence
  AttentionTiling tiling;
  std::int64_t key_end;  // positions in the cache, those of this pass included
  std::int64_t head_dim;
  std::int64_t padded_dim;
  const float* q;
  float* out;

  AttentionRun(Engine& engine, const Pass& pass, const Attention& operation)
      : engine(engine),
        pass(pass),
        operation(operation),
        separate(pass.abreast && !operation.reads_shared()),
        tiling(operation, pass.rows, {engine.takes_words(cache().format()), separate},
               keys(engine, pass, operation)),
        key_end(keys(engine, pass, operation)),
        head_dim(operation.head_dim),
        padded_dim(kernels::round_up(operation.head_dim, kernels::kKeyGroup)),
        q(engine.buffer(pass, operation.q)),
        out(engine.buffer(pass, operation.out)) {}

  static std::int64_t keys(const Engine& engine, const Pass& pass, const Attention& operation) {
    if (operation.reads_shared()) return engine.shared_->length;
    return pass.position(pass.rows - 1) + 1;
  }

  const KvCache& cache() const {
    return operation.reads_shared() ? engine.shared_->cache : engine.cache_;
  }

  // Writes the new keys and values of one kv head into the cache.
  void store_head(std::int64_t kv_head) const {
    const float* k = engine.buffer(pass, operation.k);
    const float* v = engine.buffer(pass, operation.v);
    for (std::int64_t token = 0; token < pass.rows; ++token) {
      const std::int64_t offset = (token * operation.kv_heads + kv_head) * head_dim;
      engine.vector_kernels_.store_key_value(
          engine.cache_.head(operation.layer, kv_head, separate ? token : 0),
          engine.cache_.format(), head_dim, pass.position(token), k + offset, v + offset);
    }
  }

  Tile tile(std::int64_t index) const {
    // Later tokens see more keys: the long tiles first, so that threads end together.
    const std::int64_t last_first = tiling.tiles - 1 - index / operation.kv_heads;
    const std::int64_t begin = last_first * tiling.tile_tokens;
    return {index % operation.kv_heads, begin, std::min(tiling.tile_tokens, pass.rows - begin)};
  }

  float* range_memory(std::int64_t task) const {
    const std::int64_t rows = tiling.tile_tokens * tiling.group;
    return engine.attention_partials_.as<float>() +
           static_cast<std::size_t>(task * rows) * tiling.row_floats();
  }

  // One tile over one range of keys.
  void run_task(std::int64_t task, int thread) const {
    const std::int64_t range = task % tiling.ranges;
    const Tile here = tile(task / tiling.ranges);
    const std::int64_t rows = here.tokens * tiling.group;
    auto* scratch = reinterpret_cast<float*>(engine.thread_scratch(thread));
    const AttentionPartial partial = cut_partial(
        tiling.ranges > 1 ? range_memory(task) : scratch + tiling.kernel_floats(here.tokens), rows);
    const std::int64_t q_stride = operation.heads * head_dim;
    const AttentionTask work{
        q + here.token_begin * q_stride + here.kv_head * tiling.group * head_dim,
        q_stride,
        here.tokens,
        tiling.group,
        head_dim,
        pass.position(here.token_begin),
        range * tiling.range_length,
        std::min(key_end, (range + 1) * tiling.range_length),
        operation.window,
        operation.causal,
        engine.bias_at_distance_0(operation.bias, here.kv_head * tiling.group),
        engine.bias_stride(),
        operation.scale,
        operation.softcap,
        cache().head(operation.layer, here.kv_head, separate ? here.token_begin : 0)};
    if (tiling.in_words) {
      engine.vector_kernels_.attend_words(work, partial, scratch);
    } else {
      engine.vector_kernels_.attend(work, cache().format(), partial, scratch);
    }
    if (tiling.ranges > 1) return;
    for (std::int64_t row = 0; row < rows; ++row) join(here, row, &partial);
  }

  void join_tile(std::int64_t index) const {
    const Tile here = tile(index);
    const std::int64_t rows = here.tokens * tiling.group;
    AttentionPartial partials[kMostRanges];
    for (std::int64_t range = 0; range < tiling.ranges; ++range) {
      partials[range] = cut_partial(range_memory(index * tiling.ranges + range), rows);
    }
    for (std::int64_t row = 0; row < rows; ++row) join(here, row, partials);
  }

  // out = sum over ranges of e^(maximum - M) weighted / sum over ranges of e^(maximum - M) sum, M
  // the largest maximum
  void join(const Tile& here, std::int64_t row, const AttentionPartial* partials) const {
    float maximum = -std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < tiling.ranges; ++i) {
      maximum = std::max(maximum, partials[i].maximum[row]);
    }
    const std::int64_t token = here.token_begin + row / tiling.group;
    const std::int64_t head = here.kv_head * tiling.group + row % tiling.group;
    float* y = out + (token * operation.heads + head) * head_dim;
    std::fill_n(y, head_dim, 0.0f);
    float total = 0.0f;
    for (std::int64_t i = 0; i < tiling.ranges; ++i) {
      const float factor = tiling.ranges == 1 ? 1.0f : std::exp(partials[i].maximum[row] - maximum);
      total += factor * partials[i].sum[row];
      const float* weighted = partials[i].weighted + row * padded_dim;
      for (std::int64_t d = 0; d < head_dim; ++d) y[d] += factor * weighted[d];
    }
    const float inverse = 1.0f / total;
    for (std::int64_t d = 0; d < head_dim; ++d) y[d] *= inverse;
    if (kernels::is_rotated(cache().format())) engine.vector_kernels_.rotate(y, head_dim, y);
  }
};

// Words are as exact as F16 is: where keys are, and nobody asked for exact products.
bool Engine::takes_words(kernels::CacheFormat format) const {
  return !options_.exact_input && format == kernels::CacheFormat::f16;
}

void Engine::run(Pass& pass, const Attention& operation) {
  if (!pass.starts.empty() || whole_attention_keys(operation, pass.rows) > 0) {
    return run_whole(pass, operation);
  }
  const AttentionRun run(*this, pass, operation);
  const bool shares =
      pass.lease.threads() > 1 &&
      pass.rows * run.key_end * operation.heads * operation.head_dim >= kWorkWorthSharing;
  if (!operation.reads_shared()) {
    pass.for_chunks(operation.kv_heads, shares && pass.rows > kFewTokens,
                    [&](std::int64_t kv_head, int) { run.store_head(kv_head); });
  }
  pass.for_chunks(run.tiling.tasks(), shares,
                  [&](std::int64_t task, int thread) { run.run_task(task, thread); });
  if (run.tiling.ranges == 1) return;
  pass.for_chunks(operation.kv_heads * run.tiling.tiles, shares,
                  [&](std::int64_t index, int) { run.join_tile(index); });
}

// Writes keys and values of all tokens where a decoder will read them.
void Engine::run(Pass& pass, const Share& operation) {
  const KvState& state = shared_->states[static_cast<std::size_t>(operation.layer)];
  const float* k = buffer(pass, operation.k);
  const float* v = buffer(pass, operation.v);
  pass.for_chunks(
      state.kv_heads, pass.lease.threads() > 1 && pass.rows > kFewTokens,
      [&](std::int64_t kv_head, int) {
        const kernels::HeadCache cache = shared_->cache.head(operation.layer, kv_head);
        for (std::int64_t token = 0; token < pass.rows; ++token) {
          const std::int64_t offset = (token * state.kv_heads + kv_head) * state.head_dim;
          vector_kernels_.store_key_value(cache, shared_->cache.format(), state.head_dim, token,
                                          k + offset, v + offset);
        }
      });
  shared_->length = pass.rows;
}

// Biases of every distance that the context allows, with room for the keys past the last one that
// a kernel adds them to.
void Engine::spread_biases() {
  for (const RelativeBias& bias : program_->biases()) {
    Memory memory(static_cast<std::size_t>(bias.heads * bias_stride()) * sizeof(float));
    const std::int64_t width = 2 * bias.reach + 1;
    for (std::int64_t head = 0; head < bias.heads; ++head) {
      float* values = memory.as<float>() + head * bias_stride();
      for (std::int64_t i = 0; i < bias_stride(); ++i) {
        const std::int64_t distance = std::clamp(i - options_.context, -bias.reach, bias.reach);
        values[i] = bias.values[static_cast<std::size_t>(head * width + bias.reach + distance)];
      }
    }
    biases_.push_back(std::move(memory));
  }
}

std::int64_t Engine::bias_stride() const { return 2 * options_.context + kernels::kKeyBlock; }

const float* Engine::bias_at_distance_0(BiasIndex bias, std::int64_t head) const {
  if (bias == kNone) return nullptr;
  return biases_[static_cast<std::size_t>(bias)].as<float>() + head * bias_stride() +
         options_.context;
}

}  // namespace lilliput::engine
