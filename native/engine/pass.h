// SPDX-License-Identifier: Apache-2.0
// What the operations of one forward pass share; private to the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/thread_pool.h"

namespace lilliput::engine {

// From so many rows on, elementwise work outweighs waking the other threads (about 2 µs).
inline constexpr std::int64_t kRowsTogether = 8;

// Rows that one operation after the other takes while they lie in the first-level cache: 12 KB of 768.
inline constexpr std::int64_t kRowsInCache = 4;

struct Engine::Pass {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> segments;  // empty: all 0
  std::int64_t n_past;
  std::span<const std::int32_t> output_rows;
  std::span<float> logits;
  ThreadPool::Lease& lease;
  bool abreast;                          // token i is of sequence i, all at position n_past
  std::span<const std::int64_t> starts;  // of several whole sequences, and the end; or none
  std::int64_t rows;                     // of the operation under way

  std::int64_t position(std::int64_t token) const {
    if (!starts.empty()) return token - starts[sequence(token)];
    return n_past + (abreast ? 0 : token);
  }
  // Of several whole sequences, the one that a token belongs to.
  std::size_t sequence(std::int64_t token) const {
    return static_cast<std::size_t>(std::ranges::upper_bound(starts, token) - starts.begin()) - 1;
  }

  // Calls body(chunk, thread) for each chunk, on this thread alone where sharing the work costs
  // more than it saves.
  template <typename Body>
  void for_chunks(std::int64_t chunks, bool shares, Body body) const {
    if (shares) {
      lease.parallel_for(chunks, body);
      return;
    }
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) body(chunk, 0);
  }

  // Calls body(first row, end row) for each so many rows, in parallel where they are several: what
  // several operations do with the same rows stays in cache.
  template <typename Body>
  void for_rows(std::int64_t rows_together, Body body) const {
    for_chunks((rows + rows_together - 1) / rows_together, lease.threads() > 1,
               [&](std::int64_t chunk, int) {
                 body(chunk * rows_together, std::min(rows, (chunk + 1) * rows_together));
               });
  }
};

// How a group of linears is cut into chunks of output rows, and how its input is prepared.
struct Engine::LinearPlan {
  // One preparation of the input serves all parts whose kernels prepare alike.
  struct Preparation {
    const kernels::MatmulKernel* kernel;
    std::uint8_t* memory;
  };
  struct Part {
    const LinearPart* linear;
    const kernels::Weight* weight;
    const kernels::MatmulKernel* kernel;
    std::size_t preparation;
    std::int64_t first_chunk;
    std::int64_t chunk_rows;
  };
  std::vector<Preparation> preparations;
  std::vector<Part> parts;
  std::int64_t chunks = 0;
};

// What decides how attention is cut, beside shapes and positions.
struct AttentionWay {
  bool takes_words;       // where tokens are many
  bool separate = false;  // each token is a tile of its own: its keys are those of another sequence
};

// How attention is cut into tasks: by kv head, by tile of tokens, and for few tokens by range of
// keys too. It follows from shapes and positions alone, never from the number of threads.
class AttentionTiling {
 public:
  // tokens: of the batch; key_end: positions up to the last token's, its own included.
  AttentionTiling(const Attention& attention, std::int64_t tokens, AttentionWay way,
                  std::int64_t key_end = 1);

  std::int64_t tasks() const { return attention_.kv_heads * tiles * ranges; }
  std::size_t row_floats() const;                        // of one row of a partial result
  std::size_t kernel_floats(std::int64_t tokens) const;  // scratch of a kernel
  std::size_t thread_scratch_floats() const;             // for one task
  std::size_t partial_floats(std::int64_t batch) const;  // for all tasks of the largest cut

  bool in_words;             // for VectorKernels::attend_words
  std::int64_t group;        // query heads of one kv head
  std::int64_t tile_tokens;  // tokens of one task
  std::int64_t tiles;
  std::int64_t range_length;  // keys of one task, a multiple of kernels::kKeyBlock
  std::int64_t ranges;

 private:
  const Attention& attention_;
};

}  // namespace lilliput::engine
