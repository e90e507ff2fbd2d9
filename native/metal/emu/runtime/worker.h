// One OS thread's place to run threadgroups, one after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "../simt.h"
#include "registry.h"

namespace moestream::emu {

class Worker {
 public:
  explicit Worker(const Options& options);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Throws KernelFault.
  void run(const LaunchState& launch, Triple position);

  // Called by the lanes that run in it.
  std::uint32_t wait_for_simdgroup(std::uint32_t place, Simdgroup::Combine combine);
  void wait_for_threadgroup(std::uint32_t place);
  void* variable(int id, std::size_t bytes, std::size_t alignment);
  [[noreturn]] void fault(const char* text);

 private:
  static constexpr std::size_t kStackBytes = 128 * 1024;
  static constexpr std::size_t kRedzoneBytes = 64;
  static constexpr std::size_t kMemoryBytes = 2 * kMaxThreadgroupBytes;  // half of it for redzones
  static constexpr std::uint32_t kMaxSimdgroups = kMaxThreadgroupThreads / kSimdWidth;

  static void lane_entry();

  void prepare_memory();
  void prepare_lanes(Triple size);
  void switch_to(Lane* from, Lane* to, bool ends);
  void finish_switch(Lane* arrived);
  void schedule(Lane* me, bool ends);
  void resolve(Simdgroup& simdgroup);
  Simdgroup* next_simdgroup();
  bool open_barrier(Lane* me);
  std::uint32_t pick(std::uint32_t mask, std::uint32_t after);
  void order_simdgroups();
  std::uint32_t random();

  const Options options_;
  std::uint64_t random_state_;
  unsigned char* stacks_ = nullptr;
  struct alignas(64) Memory {
    unsigned char bytes[kMemoryBytes];
  };
  std::unique_ptr<Memory> memory_;  // threadgroup memory
  std::unique_ptr<Lane[]> lanes_;
  std::unique_ptr<Simdgroup[]> simdgroups_;
  std::uint32_t order_[kMaxSimdgroups] = {};
  Threadgroup threadgroup_{};

  void* main_stack_pointer_ = nullptr;
  void* main_fiber_ = nullptr;  // a sanitizer's name for it
  [[maybe_unused]] const void* main_stack_ = nullptr;  // as AddressSanitizer tells it
  [[maybe_unused]] std::size_t main_stack_bytes_ = 0;
  std::unique_ptr<void*[]> fake_stacks_;  // AddressSanitizer's, per lane and for the main stack
  std::string fault_;
  char started_ = 0;   // addresses that sanitizers order by
  char finished_ = 0;
};

extern thread_local Worker* current_worker;

}  // namespace moestream::emu
