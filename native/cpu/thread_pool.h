// A fixed set of threads that share out one range at a time.
//
// The calling thread works too and never waits for a thread that did not come: it closes the gate when the range is
// used up and waits only for those inside. On a machine whose other cores are busy (readers, a second engine) a step
// therefore costs what the caller alone would take, not one scheduler delay more; a layer has about eight such steps.
// Which thread computes which part is left to chance, so work must not depend on it: parts write only their own output.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace moestream::cpu {

// The smallest part worth sharing out, in items: about 20,000 operations, some 5 microseconds of one core, which is
// what waking another one costs.
constexpr std::size_t grain_of(std::size_t operations_per_item) {
  constexpr std::size_t kOperationsPerPart = 20'000;
  return kOperationsPerPart / (operations_per_item + 1) + 1;
}

class ThreadPool {
 public:
  // `threads` counts the caller. A thread that waits looks `spins` times before it sleeps.
  ThreadPool(std::size_t threads, std::size_t spins);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t threads() const { return workers_.size() + 1; }

  // Calls work(begin, end, thread) until [0, count) is covered, in parts of at least `grain`; thread < threads().
  template <class Work>
  void run(std::size_t count, std::size_t grain, const Work& work) {
    run_task(count, grain, &work, [](const void* context, std::size_t begin, std::size_t end, std::size_t thread) {
      (*static_cast<const Work*>(context))(begin, end, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, std::size_t begin, std::size_t end, std::size_t thread);

  void run_task(std::size_t count, std::size_t grain, const void* context, Call call);
  void work_through(std::size_t thread);
  void serve(std::size_t thread);
  bool enter();
  void leave();
  void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t old) const;

  const std::size_t spins_;
  // The task: written by the caller while the gate is shut and empty, read by whoever is inside.
  const void* context_ = nullptr;
  Call call_ = nullptr;
  std::size_t count_ = 0;
  std::size_t part_ = 1;

  alignas(64) std::atomic<std::size_t> next_{0};
  // The number of workers inside, and kOpen while new ones may enter.
  alignas(64) std::atomic<std::uint32_t> gate_{0};
  // Counts tasks; workers sleep on it.
  alignas(64) std::atomic<std::uint32_t> task_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace moestream::cpu
