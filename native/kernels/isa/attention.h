// SPDX-License-Identifier: Apache-2.0
// Attention of one instruction set; see kernels/vector_kernels.h for the meaning.
#pragma once

#include "kernels/vector_kernels.h"

namespace lilliput::kernels::LILLIPUT_ISA {

void store_key_value(const HeadCache& cache, CacheFormat format, std::int64_t head_dim,
                     std::int64_t position, const float* key, const float* value);
// y = H x / sqrt(b): see VectorKernels::rotate.
void rotate(const float* x, std::int64_t head_dim, float* y);
void attend_whole(const WholeAttention& task, float* scratch);
void attend_whole_words(const WholeAttention& task, float* scratch);
void attend(const AttentionTask& task, CacheFormat format, const AttentionPartial& partial,
            float* scratch);
void attend_words(const AttentionTask& task, const AttentionPartial& partial, float* scratch);

}  // namespace lilliput::kernels::LILLIPUT_ISA
