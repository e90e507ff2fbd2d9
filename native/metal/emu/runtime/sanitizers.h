// The sanitizers' fiber and memory functions, empty without them.
//
// AddressSanitizer must hear of every change of stacks. ThreadSanitizer sees each lane as a thread of its own, so that
// two lanes that touch the same memory without a barrier between them are a race. The runtime itself is compiled
// without -fsanitize=thread but with MOESTREAM_EMU_TSAN.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOESTREAM_EMU_ASAN 1
#endif
#endif

#if defined(MOESTREAM_EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MOESTREAM_EMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace moestream::emu {

inline void forbid([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(MOESTREAM_EMU_ASAN)
  ASAN_POISON_MEMORY_REGION(memory, bytes);
#endif
}

inline void allow([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(MOESTREAM_EMU_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
#endif
}

// What happened before release(x) happened before acquire(x) returns.
inline void release([[maybe_unused]] void* address) {
#if defined(MOESTREAM_EMU_TSAN)
  __tsan_release(address);
#endif
}

inline void acquire([[maybe_unused]] void* address) {
#if defined(MOESTREAM_EMU_TSAN)
  __tsan_acquire(address);
#endif
}

inline void* new_sanitizer_fiber() {
#if defined(MOESTREAM_EMU_TSAN)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}

inline void end_sanitizer_fiber([[maybe_unused]] void* fiber) {
#if defined(MOESTREAM_EMU_TSAN)
  __tsan_destroy_fiber(fiber);
#endif
}

inline void* this_sanitizer_fiber() {
#if defined(MOESTREAM_EMU_TSAN)
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}

}  // namespace moestream::emu
