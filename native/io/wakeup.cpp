#include "wakeup.h"

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace moestream::io {

#ifdef __linux__
namespace {

// The kernel's sched_attr in its first form, declared here because the C library does not have it everywhere.
struct SchedulingAttributes {
  std::uint32_t size = sizeof(SchedulingAttributes);
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0;  // for an ordinary thread: its slice in nanoseconds, kept between 0.1 and 100 ms
  std::uint64_t deadline = 0;
  std::uint64_t period = 0;
};

constexpr std::uint64_t shortest_slice_nanos = 100'000;

}  // namespace

bool prefer_prompt_wakeup() {
  SchedulingAttributes attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return false;
  // Another policy is somebody's decision. A kernel that knows no slices says zero.
  if (attributes.policy != SCHED_OTHER || attributes.runtime == 0) return false;
  attributes.runtime = shortest_slice_nanos;
  return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
}
#else
bool prefer_prompt_wakeup() { return false; }
#endif

}  // namespace moestream::io
