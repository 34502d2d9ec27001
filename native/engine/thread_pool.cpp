// SPDX-License-Identifier: Apache-2.0
#include "engine/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

namespace lilliput::engine {
namespace {

// Longer than what threads that took equal shares end apart, shorter than a scheduler's slice: a
// thread that sleeps within a pass may be woken on the processor of the one that works.
constexpr std::chrono::microseconds kSpin{1000};
constexpr std::int64_t kMaxChunks = (1 << 20) - 1;

struct Ticket {
  std::uint64_t word;
  std::uint64_t generation() const { return word >> 48; }
  int threads() const { return static_cast<int>((word >> 40) & 0xff); }
  std::int64_t chunks() const { return static_cast<std::int64_t>((word >> 20) & 0xfffff); }
  std::int64_t next() const { return static_cast<std::int64_t>(word & 0xfffff); }
};

std::uint64_t make_ticket(std::uint64_t generation, int threads, std::int64_t chunks) {
  return (generation << 48) | (static_cast<std::uint64_t>(threads) << 40) |
         (static_cast<std::uint64_t>(chunks) << 20);
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until condition() holds or the time is over; returns whether it holds.
template <typename Condition>
bool spin_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

std::atomic<ThreadPool*> shared_pool{nullptr};
std::mutex* shared_pool_mutex = new std::mutex;

// The child of a fork has none of the parent's workers, and may hold its locks: it forgets both.
void forget_pool_after_fork() {
  shared_pool.store(nullptr);
  shared_pool_mutex = new std::mutex;
}

}  // namespace

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool& ThreadPool::shared() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_after_fork);
  (void)registered;
  ThreadPool* pool = shared_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  const std::lock_guard<std::mutex> lock(*shared_pool_mutex);
  pool = shared_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    pool = new ThreadPool;
    shared_pool.store(pool, std::memory_order_release);
  }
  return *pool;
}

ThreadPool::Lease::Lease(ThreadPool& pool, int threads)
    : pool_(pool),
      exclusive_(pool.exclusive_mutex_),
      threads_(std::clamp(threads, 1, kMaxThreads)) {
  pool_.start_workers(threads_ - 1);
  // More threads than processors: whoever spins keeps the one waited for from running.
  pool_.may_spin_.store(threads_ <= usable_cpus(), std::memory_order_relaxed);
}

ThreadPool::Lease::~Lease() { pool_.may_spin_.store(false, std::memory_order_relaxed); }

void ThreadPool::Lease::parallel_for(std::int64_t chunks, ChunkFunction function) {
  if (threads_ == 1 || chunks <= 1) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) function(chunk, 0);
    return;
  }
  for (std::int64_t first = 0; first < chunks; first += kMaxChunks) {
    const auto part = [first, &function](std::int64_t chunk, int thread) {
      function(first + chunk, thread);
    };
    pool_.run(std::min(kMaxChunks, chunks - first), threads_, part);
  }
}

void ThreadPool::start_workers(int count) {
  for (; workers_ < count; ++workers_) {
    std::thread([this, thread = workers_ + 1] { work(thread); }).detach();
  }
}

void ThreadPool::run(std::int64_t chunks, int threads, ChunkFunction function) {
  function_ = function;
  done_.store(0, std::memory_order_relaxed);
  const std::uint64_t generation = Ticket{ticket_.load(std::memory_order_relaxed)}.generation() + 1;
  ticket_.store(make_ticket(generation & 0xffff, threads, chunks));
  if (sleepers_.load() > 0) {
    {
      const std::lock_guard<std::mutex> lock(sleep_mutex_);
    }
    job_arrived_.notify_all();
  }
  while (claim_and_run(0)) {
  }
  wait_until_done(chunks);
}

// Claims by compare-and-swap of the whole word: a worker that comes late finds either nothing or a
// whole newer job.
bool ThreadPool::claim_and_run(int thread) {
  Ticket ticket{ticket_.load(std::memory_order_acquire)};
  do {
    if (thread >= ticket.threads() || ticket.next() >= ticket.chunks()) return false;
  } while (!ticket_.compare_exchange_weak(ticket.word, ticket.word + 1, std::memory_order_acq_rel,
                                          std::memory_order_acquire));
  function_(ticket.next(), thread);
  const std::int64_t done = done_.fetch_add(1) + 1;
  if (done == ticket.chunks() && caller_sleeps_.load()) {
    {
      const std::lock_guard<std::mutex> lock(sleep_mutex_);
    }
    job_done_.notify_one();
  }
  return true;
}

void ThreadPool::wait_until_done(std::int64_t chunks) {
  const auto is_done = [&] { return done_.load() == chunks; };
  if (may_spin_.load(std::memory_order_relaxed) ? spin_until(is_done) : is_done()) return;
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  caller_sleeps_.store(true);
  job_done_.wait(lock, is_done);
  caller_sleeps_.store(false);
}

void ThreadPool::wait_for_job(std::uint64_t seen_generation) {
  const auto has_new_job = [&] { return Ticket{ticket_.load()}.generation() != seen_generation; };
  if (may_spin_.load(std::memory_order_relaxed) && spin_until(has_new_job)) return;
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  sleepers_.fetch_add(1);
  job_arrived_.wait(lock, has_new_job);
  sleepers_.fetch_sub(1);
}

void ThreadPool::work(int thread) {
  while (true) {
    const std::uint64_t generation = Ticket{ticket_.load()}.generation();
    while (claim_and_run(thread)) {
    }
    wait_for_job(generation);
  }
}

}  // namespace lilliput::engine
