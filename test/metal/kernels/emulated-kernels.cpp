// Runs every kernel on the emulator against the CPU's code: one process per lane order and sanitizer.
//
//   emulated-kernels forward|reverse|random [os threads] [part of a kernel's name]
//
// Prints a line per check that fails, then one that counts; ends with 1 when any failed. A kernel that no
// check runs is a failure.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "../../../native/metal/checks/checks.h"
#include "../../../native/metal/emu/simt.h"

namespace {

using namespace moestream;

class EmulatedRunner : public gpu::Runner {
 public:
  void run(const gpu::Dispatch& dispatch) override {
    emu::Launch launch;
    launch.kernel = emu::find_kernel(dispatch.kernel);
    if (launch.kernel == nullptr) throw std::invalid_argument("no kernel " + dispatch.kernel);
    for (const gpu::Bound& bound : dispatch.buffers) launch.buffers[bound.index] = bound.bytes.data();
    launch.threadgroups = {dispatch.groups[0], dispatch.groups[1], dispatch.groups[2]};
    launch.threads = {dispatch.threads, 1, 1};
    emu::dispatch(launch);
    ran.insert(dispatch.kernel);
  }

  std::set<std::string> ran;
};

emu::LaneOrder order_of(const std::string& name) {
  if (name == "reverse") return emu::LaneOrder::kReverse;
  return name == "random" ? emu::LaneOrder::kRandom : emu::LaneOrder::kForward;
}

}  // namespace

int main(int count, char** words) {
  const std::string order = count > 1 ? words[1] : "forward";
  const std::string part = count > 3 ? words[3] : "";
  emu::options().order = order_of(order);
  emu::options().os_threads = count > 2 ? static_cast<std::uint32_t>(std::atoi(words[2])) : 1;
  EmulatedRunner runner;
  int done = 0;
  int failed = 0;
  double worst = 0;
  std::vector<gpu::Check> checks = gpu::all_checks();
  gpu::add_tensor_checks(checks);
  for (const gpu::Check& check : checks) {
    if (check.kernel.find(part) == std::string::npos) continue;
    ++done;
    try {
      const double distance = check.distance(runner);
      if (check.tolerance > 0) worst = std::max(worst, distance);
      if (distance <= check.tolerance) continue;
      std::printf("%s (%s): %.3g from the CPU, %.3g allowed\n", check.kernel.c_str(), check.shape.c_str(), distance,
                  check.tolerance);
    } catch (const std::exception& error) {
      std::printf("%s (%s): %s\n", check.kernel.c_str(), check.shape.c_str(), error.what());
    }
    ++failed;
  }
  for (const emu::KernelInfo* each : emu::all_kernels()) {
    if (part.empty() && !runner.ran.contains(std::string(each->name))) {
      std::printf("%s: no check runs it\n", std::string(each->name).c_str());
      ++failed;
    }
  }
  std::printf("%d checks in %s order, %d failed, largest distance %.2g\n", done, order.c_str(), failed, worst);
  return failed == 0 ? 0 : 1;
}
