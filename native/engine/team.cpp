// SPDX-License-Identifier: Apache-2.0
#include "engine/team.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <atomic>

namespace lilliput::engine {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_gomp() {
#if defined(__linux__)
  return reinterpret_cast<GompParallel>(::dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

struct Job {
  std::atomic<std::int64_t> next{0};
  std::atomic<int> joined{0};
  std::int64_t chunks;
  ChunkFunction function;
};

void join(void* argument) {
  auto& job = *static_cast<Job*>(argument);
  const int thread = job.joined.fetch_add(1, std::memory_order_relaxed);
  while (true) {
    const std::int64_t chunk = job.next.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= job.chunks) return;
    job.function(chunk, thread);
  }
}

}  // namespace

void in_team(int threads, std::int64_t chunks, ChunkFunction function) {
  const int wanted = static_cast<int>(
      std::clamp<std::int64_t>(std::min<std::int64_t>(threads, chunks), 1, kMaxThreads));
  if (wanted == 1) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) function(chunk, 0);
    return;
  }
  // Asked again until found: PyTorch may be loaded after the first call.
  static std::atomic<GompParallel> known{nullptr};
  GompParallel parallel = known.load(std::memory_order_relaxed);
  if (parallel == nullptr) {
    parallel = find_gomp();
    known.store(parallel, std::memory_order_relaxed);
  }
  if (parallel == nullptr) {
    ThreadPool::Lease(ThreadPool::shared(), wanted).parallel_for(chunks, function);
    return;
  }
  Job job;
  job.chunks = chunks;
  job.function = function;
  parallel(join, &job, static_cast<unsigned>(wanted), 0);
}

}  // namespace lilliput::engine
