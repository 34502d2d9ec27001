// SPDX-License-Identifier: Apache-2.0
// Attention over one kv head, block of keys by block of keys, with a running maximum and sum
// (online softmax: arXiv 1805.02867; in blocks: arXiv 2205.14135).
//
// For one block of 64 keys:
//   scores[row][key]   = scale * q[row] . k[key]
//   maximum, sum       updated; earlier results are corrected by e^(old maximum - new maximum)
//   weighted[row][dim] = correction * weighted + sum_key p[row][key] * v[key][dim]
// float_cache.h and coded_cache.h say how the first and the last are computed.
#include "kernels/isa/attention.h"

#include "kernels/isa/attention_block.h"
#include "kernels/isa/coded_cache.h"
#include "kernels/isa/float_cache.h"

namespace lilliput::kernels::LILLIPUT_ISA {
namespace {

template <typename Cache>
void attend_over(const AttentionTask& task, CacheFormat format, Block block,
                 const AttentionPartial& partial, const Scratch& scratch) {
  Cache cache(task, format, block, scratch);
  const KeyRange range = seen_keys(task);
  for (std::int64_t key_begin = range.begin; key_begin < range.end; key_begin += kKeyBlock) {
    block.keys = range.end - key_begin < kKeyBlock ? range.end - key_begin : kKeyBlock;
    cache.score(block, key_begin);
    softmax_block<Cache::kSharesOfBlock>(task, block, key_begin, partial, scratch,
                                         [&] { cache.ask_for_more(); });
    cache.weigh(block, key_begin, partial.weighted);
  }
}

}  // namespace

void attend(const AttentionTask& task, CacheFormat format, const AttentionPartial& partial,
            float* scratch) {
  const Block block{task.tokens * task.group, task.head_dim, round_up(task.head_dim, kKeyGroup), 0};
  const Scratch parts = cut(scratch, block);
  for (std::int64_t row = 0; row < block.rows; ++row) {
    partial.maximum[row] = kMinusInfinity;
    partial.sum[row] = 0.0f;
  }
  for (std::int64_t i = 0; i < block.rows * block.padded_dim; ++i) partial.weighted[i] = 0.0f;
  switch (format) {
    case CacheFormat::f16:
      return attend_over<FloatCache<std::uint16_t>>(task, format, block, partial, parts);
    case CacheFormat::f32:
      return attend_over<FloatCache<float>>(task, format, block, partial, parts);
    case CacheFormat::q8_0:
    case CacheFormat::q8_0_plain:
      return attend_over<CodedCache<8>>(task, format, block, partial, parts);
    case CacheFormat::q4_0:
    case CacheFormat::q4_0_plain:
      return attend_over<CodedCache<4>>(task, format, block, partial, parts);
  }
}

}  // namespace lilliput::kernels::LILLIPUT_ISA
