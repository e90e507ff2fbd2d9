// Where a kernel runs: on the emulator, on a Mac's GPU, or as PTX on an NVIDIA card. The checks are written once, against
// this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moestream::gpu {

struct Bound {
  std::uint32_t index;
  std::span<std::byte> bytes;  // the host's memory; what the kernel writes is there when run() returns
};

struct Dispatch {
  std::string kernel;
  std::vector<Bound> buffers;
  std::uint32_t groups[3] = {1, 1, 1};
  std::uint32_t threads = 0;  // per threadgroup
};

class Runner {
 public:
  virtual ~Runner() = default;
  // Waits until the kernel has ended. Throws what the place throws.
  virtual void run(const Dispatch& dispatch) = 0;
};

}  // namespace moestream::gpu
