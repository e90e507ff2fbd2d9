// Every kernel on random data against the CPU's code (../checks), on the device that the backend would use.
#pragma once

#include <vector>

#include "../checks/checks.h"
#include "commands.h"
#include "kernels.h"

namespace moestream::metal {

class DeviceChecks {
 public:
  // Throws GpuError where there is no device or its compiler refuses the kernels.
  DeviceChecks();

  const std::vector<gpu::Check>& all() const { return checks_; }
  // How far from the CPU's result, as Check says. Throws GpuError.
  double run(const gpu::Check& check);

 private:
  Device device_;
  Submission submission_;
  Kernels kernels_;
  std::vector<gpu::Check> checks_;
};

}  // namespace moestream::metal
