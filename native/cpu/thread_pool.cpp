// The gate of thread_pool.h. By default a thread spins for about 2 microseconds (50 looks) before it sleeps: less than one
// futex round trip (5 us), so that the steps of one layer follow each other without system calls and an idle pool costs
// nothing. How long is best depends on the machine, so it is a setting.
#include "thread_pool.h"

#include <algorithm>

#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

constexpr std::uint32_t kOpen = 1u << 31;
// Parts per thread: enough that a thread that comes late or runs slowly leaves the others something to take over.
constexpr std::size_t kPartsPerThread = 4;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(std::size_t threads, std::size_t spins) : spins_(spins) {
  invariant(threads >= 1, "a pool has at least the calling thread");
  workers_.reserve(threads - 1);
  for (std::size_t thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { serve(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_release);
  task_.fetch_add(1, std::memory_order_release);
  task_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_task(std::size_t count, std::size_t grain, const void* context, Call call) {
  if (count == 0) return;
  const std::size_t share = count / (threads() * kPartsPerThread);
  const std::size_t part = std::max({share, grain, std::size_t{1}});
  if (workers_.empty() || part >= count) {
    call(context, 0, count, 0);
    return;
  }
  context_ = context;
  call_ = call;
  count_ = count;
  part_ = part;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  task_.fetch_add(1, std::memory_order_release);
  task_.notify_all();
  work_through(0);
  std::uint32_t inside = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  while (inside != 0) {
    wait_while(gate_, inside);
    inside = gate_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work_through(std::size_t thread) {
  while (true) {
    const std::size_t begin = next_.fetch_add(part_, std::memory_order_relaxed);
    if (begin >= count_) return;
    call_(context_, begin, std::min(begin + part_, count_), thread);
  }
}

void ThreadPool::serve(std::size_t thread) {
  std::uint32_t seen = 0;
  while (true) {
    wait_while(task_, seen);
    if (stopping_.load(std::memory_order_acquire)) return;
    seen = task_.load(std::memory_order_acquire);
    if (enter()) {
      work_through(thread);
      leave();
    }
  }
}

// Returns when `word` no longer holds `old`.
void ThreadPool::wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t old) const {
  for (std::size_t spin = 0; spin < spins_; ++spin) {
    if (word.load(std::memory_order_acquire) != old) return;
    pause();
  }
  word.wait(old, std::memory_order_acquire);
}

bool ThreadPool::enter() {
  std::uint32_t gate = gate_.load(std::memory_order_relaxed);
  while ((gate & kOpen) != 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire, std::memory_order_relaxed)) return true;
  }
  return false;
}

void ThreadPool::leave() {
  if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_one();
}

}  // namespace moestream::cpu
