// SPDX-License-Identifier: Apache-2.0
#include "kernels/vector_kernels.h"

namespace lilliput::kernels {

// Once per instruction set, native/kernels/isa.
#define LILLIPUT_DECLARE(set)                \
  namespace set {                            \
  extern const VectorKernels kVectorKernels; \
  }
LILLIPUT_BUILT_SETS(LILLIPUT_DECLARE)
#undef LILLIPUT_DECLARE

std::size_t attention_scratch_floats(std::int64_t rows, std::int64_t head_dim) {
  // Scaled queries, scores of one key block, one block of keys and of values as floats,
  // corrections and shares; where the cache holds codes, those of queries and probabilities and their factors.
  const std::int64_t padded_dim = round_up(head_dim, kKeyGroup);
  const std::int64_t groups = scale_groups(head_dim);
  const std::int64_t floats =
      rows * padded_dim + rows * kKeyBlock + 2 * kKeyBlock * padded_dim + 2 * rows;
  const std::int64_t codes =
      rows * padded_dim / 4 + rows * groups * (2 * kKeyBlock / 4 + 4) + groups * (kKeyBlock + 1);
  return static_cast<std::size_t>(round_up(floats, kKeyGroup) + codes);
}

std::size_t word_attention_floats(std::int64_t tokens, std::int64_t group, std::int64_t head_dim) {
  // Words of a block's keys and values, scores of a part, three factors of each key; words and factor
  // of each row; step and correction of each row of a part.
  const std::int64_t pairs = head_dim / 2;
  const std::int64_t part_rows = word_part_tokens(group) * group;
  return static_cast<std::size_t>(kKeyBlock *
                                      (pairs + round_up(head_dim, kKeyGroup) / 2 + part_rows + 3) +
                                  tokens * group * (pairs + 1) + 2 * part_rows);
}

std::size_t whole_attention_floats(std::int64_t queries, std::int64_t keys, std::int64_t head_dim) {
  // Keys, values, scores, and for each query its words and two factors.
  const std::int64_t padded = round_up(keys, kWholeKeys);
  return static_cast<std::size_t>(2 * padded * head_dim + queries * (padded + head_dim / 2 + 2));
}

const VectorKernels& vector_kernels(Isa isa) {
  require_available(isa);
#define LILLIPUT_TABLE(set) \
  if (isa == Isa::set) return set::kVectorKernels;
  LILLIPUT_BUILT_SETS(LILLIPUT_TABLE)
#undef LILLIPUT_TABLE
  return scalar::kVectorKernels;
}

}  // namespace lilliput::kernels
