// SPDX-License-Identifier: Apache-2.0
// Threads for a call from inside another library's work, which has threads of its own.
//
// PyTorch's OpenMP workers spin for a while after each of its operations. A pool of ours beside
// them would fight for the same processors, so its team is borrowed where the process has
// loaded one (GNU's runtime: GOMP_parallel), and our own pool is used elsewhere.
#pragma once

#include "engine/thread_pool.h"

namespace lilliput::engine {

// Calls function(chunk, thread) for every chunk in [0, chunks), on at most `threads` threads.
// `function` must not throw. All writes of the chunks are visible when it returns.
void in_team(int threads, std::int64_t chunks, ChunkFunction function);

}  // namespace lilliput::engine
