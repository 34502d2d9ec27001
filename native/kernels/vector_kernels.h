// SPDX-License-Identifier: Apache-2.0
// The border between the engine and the kernels that work on rows of floats: norms, rotation,
// attention, activations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cache_layout.h"
#include "kernels/matmul.h"

namespace lilliput::kernels {

enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu, tanh };
enum class RopeStyle : std::uint8_t { adjacent, halves };

// The rows that one kv head serves: `tokens` x `group` queries, row = token * group + head within
// the group.
struct AttentionTask {
  const float* q;  // first token, first head of the group
  std::int64_t q_stride;
  std::int64_t tokens;
  std::int64_t group;
  std::int64_t head_dim;
  std::int64_t first_position;  // of the first token
  std::int64_t key_begin;       // multiple of kKeyBlock
  std::int64_t key_end;         // exclusive; may lie beyond what the last token sees
  std::int64_t window;          // keys that a token sees, its own included; 0: all
  bool causal;                  // a token sees no later key; otherwise all up to key_end
  const float* bias;            // of the group's first head at distance 0, added to the scores of
                                // a key by its position less the query's; null: none
  std::int64_t bias_stride;     // floats from one head's bias to the next one's
  float scale;
  float softcap;  // 0: none
  HeadCache cache;
};

// Softmax over a range of keys, not yet divided: true output is the sum over ranges of e^(maximum -
// M) * weighted. maximum, sum: [rows].  weighted: [rows][padded_dim].
struct AttentionPartial {
  float* maximum;
  float* sum;
  float* weighted;
};

// Queries of one head that see every key, in rows of a pass: no cache, nothing kept. head_dim is a
// multiple of 16.
struct WholeAttention {
  const float* q;  // of the head, the first query
  const float* k;  // of its kv head, the first key
  const float* v;
  float* out;              // as q
  std::int64_t q_stride;   // floats from one token to the next, of q and out
  std::int64_t kv_stride;  // of k and v
  std::int64_t queries;
  std::int64_t first_query;  // position of the first one
  std::int64_t keys;
  std::int64_t head_dim;
  float scale;
  const float* bias;  // at distance 0, by the key's position less the query's; readable for 16
                      // distances past the last key's; null: none
};

struct VectorKernels {
  // y = x / sqrt(mean(x²) + epsilon) * weight over `width` floats; y may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, std::int64_t width,
                   float* y);
  // y = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias; bias may be null; y may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon,
                     std::int64_t width, float* y);
  void (*add)(const float* a, const float* b, std::int64_t width, float* y);
  void (*activate)(const float* x, Activation activation, std::int64_t width, float* y);
  void (*scale)(const float* x, float factor, std::int64_t width, float* y);
  // y = limit tanh(x / limit)
  void (*softcap)(const float* x, float limit, std::int64_t width, float* y);
  void (*glu)(const float* gate, const float* up, Activation activation, std::int64_t width,
              float* y);
  // Rotates each head's first 2 * pairs floats by the angles whose cosine and sine are given,
  // [pairs] each.
  void (*rope)(float* x, std::int64_t heads, std::int64_t head_dim, const float* cosine,
               const float* sine, std::int64_t pairs, RopeStyle style);
  // Writes one position of one kv head into its cache.
  void (*store_key_value)(const HeadCache& cache, CacheFormat format, std::int64_t head_dim,
                          std::int64_t position, const float* key, const float* value);
  // `scratch` has attention_scratch_floats(rows, head_dim) floats of this thread's own, 64-byte
  // aligned.
  // Of a rotated cache `weighted` is rotated too.
  void (*attend)(const AttentionTask& task, CacheFormat format, const AttentionPartial& partial,
                 float* scratch);
  // The same over a cache of F16 with numbers rounded to 13 bits or more, for many tokens; head_dim is
  // even, `scratch` has word_attention_floats(tokens, group, head_dim) floats. What a token gets does
  // not depend on those beside it.
  void (*attend_words)(const AttentionTask& task, const AttentionPartial& partial, float* scratch);
  // `scratch` has whole_attention_floats(queries, keys, head_dim) floats of this thread's own.
  void (*attend_whole)(const WholeAttention& task, float* scratch);
  // The same with numbers rounded to 12 bits or more; head_dim is a multiple of 32.
  void (*attend_whole_words)(const WholeAttention& task, float* scratch);
  // y = H x / sqrt(b) for each run of b floats, b the largest power of two that divides head_dim
  // and H the Hadamard matrix of that size: its own inverse; y may be x.
  void (*rotate)(const float* x, std::int64_t head_dim, float* y);
};

// What keys of whole attention are filled up to.
inline constexpr std::int64_t kWholeKeys = 32;
std::size_t whole_attention_floats(std::int64_t queries, std::int64_t keys, std::int64_t head_dim);
// Tokens that attend_words takes through a block of keys together: 8 tiles of 6 rows, whose scores stay
// in the first-level cache.
static inline std::int64_t word_part_tokens(std::int64_t group) {
  return group < 48 ? 48 / group : 1;
}
std::size_t word_attention_floats(std::int64_t tokens, std::int64_t group, std::int64_t head_dim);
std::size_t attention_scratch_floats(std::int64_t rows, std::int64_t head_dim);

const VectorKernels& vector_kernels(Isa isa);

}  // namespace lilliput::kernels
