// Running emulated kernels: the interface between the SIMT runtime and what launches kernels (tests, the fake Metal).
//
// Kernels that the generator compiled register themselves when their object file is linked in. A dispatch runs to its
// end before it returns and throws KernelFault when a kernel breaks a rule that a GPU would let pass in silence.
// Dispatches from several threads are taken one after the other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace moestream::emu {

struct Size {
  std::uint32_t x = 1;
  std::uint32_t y = 1;
  std::uint32_t z = 1;
};

inline constexpr std::size_t kBufferSlots = 31;
inline constexpr std::uint32_t kSimdWidth = 32;
inline constexpr std::uint32_t kMaxThreadgroupThreads = 1024;
inline constexpr std::uint32_t kMaxThreadgroupBytes = 32768;

// One parameter of a kernel that is bound by index.
struct Binding {
  enum class Kind { kBuffer, kThreadgroup };
  Kind kind;
  std::uint32_t index;
  bool written;  // false for `const` pointers and for references to constants
};

struct KernelInfo {
  std::string_view name;     // the host name
  std::string_view library;  // the .metal file without its ending
  std::uint32_t max_threads;
  std::span<const Binding> bindings;
};

// Null when no kernel has the name.
const KernelInfo* find_kernel(std::string_view name);
std::vector<const KernelInfo*> all_kernels();

// A function constant's value, of a pipeline; the kernel reads as many bytes as its type has.
struct FunctionConstant {
  std::uint32_t index;
  std::array<std::byte, 16> bytes;
};

struct Launch {
  const KernelInfo* kernel = nullptr;
  std::array<void*, kBufferSlots> buffers{};  // with their offsets added
  std::array<std::uint32_t, kBufferSlots> threadgroup_bytes{};
  std::span<const FunctionConstant> constants;
  Size threadgroups;
  Size threads;  // per threadgroup
};

enum class LaneOrder { kForward, kReverse, kRandom };

struct Options {
  LaneOrder order = LaneOrder::kForward;
  std::uint64_t seed = 1;           // of the random order
  std::uint32_t os_threads = 1;     // that share the threadgroups of a dispatch
  bool strict_barrier = true;       // every thread of a threadgroup reaches every barrier, and the same one
  bool require_full_simd = true;    // simdgroup functions only with all lanes, ended ones included
  bool poison = true;               // threadgroup memory starts as NaN
};

// Of the process; dispatches read them when they begin.
Options& options();

// What a kernel did wrong: its name, threadgroup and thread, and the rule.
class KernelFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws std::invalid_argument for a launch that no device would take, KernelFault for what a kernel does wrong.
void dispatch(const Launch& launch);

}  // namespace moestream::emu
