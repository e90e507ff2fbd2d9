// What an emulated kernel sees of the runtime: its lane, its simdgroup, its threadgroup, and the two places where lanes
// wait for each other. Included by generated code, so it needs nothing of the standard library but fixed-width types.
//
// One lane is one fiber. A simdgroup function deposits its operand, waits until every lane of its simdgroup is blocked,
// and the lanes that stand at the same place of the source are resolved together.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace moestream::emu {

struct Triple {
  uint32_t v[3];
};

struct Threadgroup;
struct Simdgroup;

struct Lane {
  void* stack_pointer;
  void* sanitizer_fiber;
  Simdgroup* simdgroup;
  Threadgroup* threadgroup;
  uint32_t index;      // in the threadgroup
  uint32_t lane;       // in the simdgroup
  uint32_t simdgroup_index;
  uint32_t place;      // of the source, where it waits: line << 8 | column
  Triple position;
};

struct Simdgroup {
  static constexpr int kSlotBytes = 64;
  using Combine = void (*)(Simdgroup&, uint32_t mask);

  alignas(16) unsigned char slots[32][kSlotBytes];
  alignas(16) unsigned char results[32 * kSlotBytes];
  Lane* lanes[32];
  Combine combine;
  // Lanes as bits: all that were launched, ready to run, waiting in a simdgroup function, at a barrier, finished.
  uint32_t all, ready, in_function, at_barrier, done;
  uint32_t active;  // of the function resolved last
};

struct LaunchState;

struct Threadgroup {
  static constexpr uint32_t kMaxVariables = 64;
  static constexpr uint32_t kNoOffset = 0xffffffffu;

  const LaunchState* launch;
  Triple position;
  uint32_t threads, simdgroups;
  unsigned char* memory;
  uint32_t memory_used;     // with redzones
  uint32_t variable_bytes;  // without
  uint32_t given_offsets[31];              // of threadgroup memory that the launch gives
  uint32_t variable_offsets[kMaxVariables];
};

struct LaunchState {
  const void* kernel;  // KernelEntry
  void* buffers[31];
  uint32_t threadgroup_bytes[31];
  Triple threadgroups, threads;
};

extern thread_local Lane* current_lane;

// Returns the lanes that were resolved together. A null `combine` orders memory, others do not.
uint32_t wait_for_simdgroup(uint32_t place, Simdgroup::Combine combine);
void wait_for_threadgroup(uint32_t place);
void* threadgroup_memory(int variable, size_t bytes, size_t alignment);
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <class T>
T* threadgroup_variable(int variable) {
  return static_cast<T*>(threadgroup_memory(variable, sizeof(T), alignof(T)));
}

}  // namespace moestream::emu
