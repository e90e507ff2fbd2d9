// A launch, checked as Metal's validation layer checks it, and its threadgroups shared out over OS threads.
#include <atomic>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "worker.h"

namespace moestream::emu {
namespace {

std::mutex dispatching;  // function constants are variables of the process

[[noreturn]] void refuse(const KernelInfo& kernel, const std::string& sentence) {
  throw std::invalid_argument("kernel " + std::string(kernel.name) + ": " + sentence);
}

void check(const Launch& launch) {
  if (launch.kernel == nullptr) throw std::invalid_argument("a launch has a kernel");
  const KernelInfo& kernel = *launch.kernel;
  const std::uint64_t threads = std::uint64_t{launch.threads.x} * launch.threads.y * launch.threads.z;
  if (threads == 0 || threads > kernel.max_threads || threads > kMaxThreadgroupThreads) {
    refuse(kernel, std::to_string(threads) + " threads per threadgroup");
  }
  if (launch.threadgroups.x == 0 || launch.threadgroups.y == 0 || launch.threadgroups.z == 0) {
    refuse(kernel, "an empty grid");
  }
  std::uint32_t given = 0;
  for (const Binding& binding : kernel.bindings) {
    const std::string index = std::to_string(binding.index);
    if (binding.kind == Binding::Kind::kBuffer && launch.buffers[binding.index] == nullptr) {
      refuse(kernel, "buffer " + index + " is not bound");
    }
    if (binding.kind != Binding::Kind::kThreadgroup) continue;
    const std::uint32_t bytes = launch.threadgroup_bytes[binding.index];
    if (bytes == 0 || bytes % 16 != 0) refuse(kernel, "threadgroup memory " + index + " has no multiple of 16 bytes");
    given += bytes;
  }
  if (given > kMaxThreadgroupBytes) refuse(kernel, std::to_string(given) + " bytes of threadgroup memory");
}

LaunchState state_of(const Launch& launch) {
  LaunchState state{};
  state.kernel = &entry_of(*launch.kernel);
  for (std::size_t i = 0; i < kBufferSlots; ++i) {
    state.buffers[i] = launch.buffers[i];
    state.threadgroup_bytes[i] = launch.threadgroup_bytes[i];
  }
  state.threadgroups = {{launch.threadgroups.x, launch.threadgroups.y, launch.threadgroups.z}};
  state.threads = {{launch.threads.x, launch.threads.y, launch.threads.z}};
  return state;
}

// Stacks are mapped once per thread and kept; options change between launches in tests, so they are compared.
Worker& worker_for(const Options& options) {
  static thread_local Options made_with;
  static thread_local std::unique_ptr<Worker> worker;
  const bool same = made_with.order == options.order && made_with.seed == options.seed &&
                    made_with.strict_barrier == options.strict_barrier &&
                    made_with.require_full_simd == options.require_full_simd && made_with.poison == options.poison;
  if (worker == nullptr || !same) {
    worker = std::make_unique<Worker>(options);
    made_with = options;
  }
  return *worker;
}

}  // namespace

Options& options() {
  static Options of_process;
  return of_process;
}

void dispatch(const Launch& launch) {
  const std::lock_guard<std::mutex> one(dispatching);
  check(launch);
  set_constants(launch.constants);
  const LaunchState state = state_of(launch);
  const Options now = options();
  const std::uint64_t x = launch.threadgroups.x;
  const std::uint64_t y = launch.threadgroups.y;
  const std::uint64_t count = x * y * launch.threadgroups.z;
  std::atomic<std::uint64_t> next{0};
  std::exception_ptr first_fault;
  std::mutex faulting;
  const auto work = [&] {
    Worker& worker = worker_for(now);
    try {
      for (std::uint64_t i = next++; i < count; i = next++) {
        const auto at = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
        worker.run(state, {{at(i % x), at(i / x % y), at(i / (x * y))}});
      }
    } catch (...) {
      const std::lock_guard<std::mutex> mine(faulting);
      if (!first_fault) first_fault = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> others;
  for (std::uint32_t i = 1; i < now.os_threads && i < count; ++i) others.emplace_back(work);
  work();
  for (std::thread& each : others) each.join();
  if (first_fault) std::rethrow_exception(first_fault);
}

}  // namespace moestream::emu
