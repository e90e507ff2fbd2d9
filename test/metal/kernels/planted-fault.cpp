// Runs one kernel of planted/faults.metal on the emulator and says what came of it.
//
//   planted-fault KERNEL [random] [divergent]
//
// `divergent` lets simdgroup functions be reached by a part of the lanes. Ends with 2 after a fault, 3 when the output is
// not a number, else 0; a sanitizer that finds something ends the process in its own way.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "../../../native/metal/emu/simt.h"

int main(int count, char** words) {
  using namespace moestream;
  constexpr std::uint32_t kThreads = 128;
  for (int i = 2; i < count; ++i) {
    if (std::strcmp(words[i], "random") == 0) emu::options().order = emu::LaneOrder::kRandom;
    if (std::strcmp(words[i], "divergent") == 0) emu::options().require_full_simd = false;
  }
  // An array of its own, so that AddressSanitizer knows where it ends.
  const auto out = std::make_unique<float[]>(kThreads);
  std::uint32_t threads = kThreads;
  emu::Launch launch;
  launch.kernel = emu::find_kernel(words[1]);
  launch.buffers[0] = out.get();
  launch.buffers[1] = &threads;
  launch.threads = {kThreads, 1, 1};
  try {
    emu::dispatch(launch);
  } catch (const emu::KernelFault& fault) {
    std::printf("fault: %s\n", fault.what());
    return 2;
  }
  for (std::uint32_t i = 0; i < kThreads; ++i) {
    if (!std::isnan(out[i])) continue;
    std::printf("value %u is not a number\n", i);
    return 3;
  }
  std::printf("ran\n");
  return 0;
}
