// SPDX-License-Identifier: Apache-2.0
// The process's one pool of worker threads.
//
// The caller works too: `threads` = 1 starts nothing. Chunks are claimed one by one, so a worker
// that the operating system has put aside never holds the others up before it has claimed
// something. Workers spin briefly for the next job while a Lease is open, and sleep otherwise. The
// pool is started lazily, started anew after fork, and never joined: it is leaked on purpose at
// exit.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>

namespace lilliput::engine {

// A reference to a callable of (chunk, thread), valid as long as the callable: no allocation per
// job.
class ChunkFunction {
 public:
  template <typename F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, ChunkFunction>)
  ChunkFunction(F&& function)  // NOLINT: implicit, so that a lambda can be passed
      : object_(const_cast<void*>(static_cast<const void*>(&function))),
        call_([](void* object, std::int64_t chunk, int thread) {
          (*static_cast<std::remove_reference_t<F>*>(object))(chunk, thread);
        }) {}
  ChunkFunction() = default;
  void operator()(std::int64_t chunk, int thread) const { call_(object_, chunk, thread); }

 private:
  void* object_ = nullptr;
  void (*call_)(void*, std::int64_t, int) = nullptr;
};

inline constexpr int kMaxThreads = 255;

// CPUs that this process may use.
int usable_cpus();

class ThreadPool {
 public:
  // The pool of this process; a forked child gets its own.
  static ThreadPool& shared();

  // Exclusive use of the pool by one caller for a run of jobs, for example one forward pass.
  class Lease {
   public:
    Lease(ThreadPool& pool, int threads);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    int threads() const { return threads_; }
    // Calls function(chunk, thread) for every chunk in [0, chunks), thread in [0, threads).
    // `function` must not throw. All writes of the chunks are visible when it returns.
    void parallel_for(std::int64_t chunks, ChunkFunction function);

   private:
    ThreadPool& pool_;
    std::unique_lock<std::mutex> exclusive_;
    int threads_;
  };

 private:
  ThreadPool() = default;
  void start_workers(int count);
  void work(int thread);
  bool claim_and_run(int thread);
  void wait_for_job(std::uint64_t seen_generation);
  void wait_until_done(std::int64_t chunks);
  void run(std::int64_t chunks, int threads, ChunkFunction function);

  // One word, so that a claim sees one consistent job: generation 16 | threads 8 | chunks 20 | next
  // chunk 20 bits.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::int64_t> done_{0};
  alignas(64) ChunkFunction function_;
  std::atomic<bool> may_spin_{false};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::mutex sleep_mutex_;
  std::condition_variable job_arrived_;
  std::condition_variable job_done_;
  std::mutex exclusive_mutex_;
  int workers_ = 0;
};

}  // namespace lilliput::engine
