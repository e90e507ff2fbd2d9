// The runtime's side of registration.h.
#pragma once

#include <span>
#include <vector>

#include "../simt.h"
#include "registration.h"

namespace moestream::emu {

struct RegisteredKernel {
  KernelInfo info;
  KernelEntry entry;
  std::vector<Binding> bindings;
};

const KernelEntry& entry_of(const KernelInfo& info);

// Every function constant gets its value, or zero.
void set_constants(std::span<const FunctionConstant> values);

}  // namespace moestream::emu
