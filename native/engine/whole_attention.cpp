// SPDX-License-Identifier: Apache-2.0
// Attention of encoders: all tokens come in one pass and see each other, so that nothing needs to be
// kept between passes, and the cache of keys and values is passed by.
#include <algorithm>

#include "engine/pass.h"

namespace lilliput::engine {
namespace {

// Dimensions that the kernel in integers takes at a time.
constexpr std::int64_t kWordStep = 32;
// Queries of one task at most, a multiple of the kernel's 6 rows: keys are turned for each task.
constexpr std::int64_t kQueries = 132;
// Tasks of a head where threads share them.
constexpr std::int64_t kTasksOfHead = 2;
// Scores of a task stay in the second-level cache up to so many keys.
constexpr std::int64_t kMostKeys = 1024;
// Multiplications of scores below which one thread ends sooner (about 10 µs).
constexpr std::int64_t kWorkWorthSharing = 30'000;

}  // namespace

// Keys of an attention that takes this way, or 0. A cache of other numbers than float32 means that
// keys and values are rounded to them.
std::int64_t Engine::whole_attention_keys(const Attention& operation, std::int64_t tokens) const {
  const bool fits = !operation.causal && !operation.reads_shared() && operation.softcap == 0.0f &&
                    operation.head_dim % kernels::kKeyGroup == 0 && tokens <= kMostKeys &&
                    options_.cache_format == kernels::CacheFormat::f32;
  return fits ? tokens : 0;
}

std::size_t Engine::whole_attention_bytes(const Attention& operation) const {
  const std::int64_t keys = whole_attention_keys(operation, std::min(options_.batch, kMostKeys));
  return kernels::whole_attention_floats(kQueries, keys, operation.head_dim) * sizeof(float);
}

void Engine::run_whole(Pass& pass, const Attention& operation) {
  const std::int64_t width = operation.heads * operation.head_dim;
  const bool shares =
      pass.lease.threads() > 1 && pass.rows * pass.rows * width >= kWorkWorthSharing;
  if (!pass.starts.empty()) {
    pass.for_chunks(operation.heads, shares, [&](std::int64_t head, int thread) {
      attend_whole(pass, operation, head, 0, pass.rows, thread);
    });
    return;
  }
  const std::int64_t wanted = (pass.rows + kTasksOfHead - 1) / kTasksOfHead;
  const std::int64_t queries = shares ? std::min(kQueries, wanted) : kQueries;
  const std::int64_t blocks = (pass.rows + queries - 1) / queries;
  pass.for_chunks(operation.heads * blocks, shares, [&](std::int64_t chunk, int thread) {
    const std::int64_t first = chunk % blocks * queries;
    attend_whole(pass, operation, chunk / blocks, first, std::min(first + queries, pass.rows),
                 thread);
  });
}

// Queries [begin, end) of one head, each among the keys of its own sequence.
void Engine::attend_whole(const Pass& pass, const Attention& operation, std::int64_t head,
                          std::int64_t begin, std::int64_t end, int thread) {
  if (pass.starts.empty()) {
    attend_sequence(pass, operation, head, {begin, end, 0, pass.rows}, thread);
    return;
  }
  while (begin < end) {
    const std::size_t sequence = pass.sequence(begin);
    const std::int64_t last = pass.starts[sequence + 1];
    const std::int64_t stop = std::min(end, last);
    attend_sequence(pass, operation, head, {begin, stop, pass.starts[sequence], last}, thread);
    begin = stop;
  }
}

void Engine::attend_sequence(const Pass& pass, const Attention& operation, std::int64_t head,
                             const Queries& queries, int thread) {
  const std::int64_t group = operation.heads / operation.kv_heads;
  const std::int64_t q_stride = operation.heads * operation.head_dim;
  const std::int64_t kv_stride = operation.kv_heads * operation.head_dim;
  const std::int64_t kv_offset = queries.first * kv_stride + head / group * operation.head_dim;
  const bool has_words = rounds_inputs_ && operation.head_dim % kWordStep == 0;
  const auto attend = has_words ? vector_kernels_.attend_whole_words : vector_kernels_.attend_whole;
  for (std::int64_t first = queries.begin; first < queries.end; first += kQueries) {
    const std::int64_t offset = first * q_stride + head * operation.head_dim;
    attend({buffer(pass, operation.q) + offset, buffer(pass, operation.k) + kv_offset,
            buffer(pass, operation.v) + kv_offset, buffer(pass, operation.out) + offset, q_stride,
            kv_stride, std::min(kQueries, queries.end - first), first - queries.first,
            queries.last - queries.first, operation.head_dim, operation.scale,
            bias_at_distance_0(operation.bias, head)},
           reinterpret_cast<float*>(thread_scratch(thread)));
  }
}

}  // namespace lilliput::engine
