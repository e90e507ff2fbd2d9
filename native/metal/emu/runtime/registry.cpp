// Which kernels and function constants the linked objects brought.
#include "registry.h"

#include <cstring>

namespace moestream::emu {
namespace {

// Registrations run before main, in any order: the lists are made by whoever comes first. None is ever destroyed, as a
// kernel may still run while the process ends.
std::vector<KernelEntry>& entries() {
  static std::vector<KernelEntry>& list = *new std::vector<KernelEntry>;
  return list;
}

struct Slot {
  std::uint32_t index;
  void* variable;
  std::size_t bytes;
};

std::vector<Slot>& constant_slots() {
  static std::vector<Slot>& list = *new std::vector<Slot>;
  return list;
}

std::vector<Binding> bindings_of(const KernelEntry& entry) {
  std::vector<Binding> bindings;
  for (std::uint32_t i = 0; i < entry.parameter_count; ++i) {
    const Parameter& parameter = entry.parameters[i];
    const bool written = (entry.written >> i & 1u) != 0;
    if (parameter.kind == ParameterKind::kBuffer) {
      bindings.push_back({Binding::Kind::kBuffer, parameter.index, written});
    } else if (parameter.kind == ParameterKind::kThreadgroupMemory) {
      bindings.push_back({Binding::Kind::kThreadgroup, parameter.index, written});
    }
  }
  return bindings;
}

// Made once, when the first kernel is looked for; pointers into it stay good.
const std::vector<RegisteredKernel>& kernels() {
  static const std::vector<RegisteredKernel>& list = [] -> std::vector<RegisteredKernel>& {
    std::vector<RegisteredKernel>& made = *new std::vector<RegisteredKernel>;
    made.reserve(entries().size());
    for (const KernelEntry& entry : entries()) {
      made.push_back({{entry.name, entry.library, entry.max_threads, {}}, entry, bindings_of(entry)});
      made.back().info.bindings = made.back().bindings;
    }
    return made;
  }();
  return list;
}

}  // namespace

Registration::Registration(const KernelEntry& entry) { entries().push_back(entry); }

ConstantSlot::ConstantSlot(std::uint32_t index, void* variable, std::size_t bytes) {
  constant_slots().push_back({index, variable, bytes});
}

void set_constants(std::span<const FunctionConstant> values) {
  for (const Slot& slot : constant_slots()) {
    std::memset(slot.variable, 0, slot.bytes);
    for (const FunctionConstant& value : values) {
      if (value.index == slot.index) std::memcpy(slot.variable, value.bytes.data(), slot.bytes);
    }
  }
}

const KernelEntry& entry_of(const KernelInfo& info) {
  for (const RegisteredKernel& each : kernels()) {
    if (&each.info == &info) return each.entry;
  }
  throw std::invalid_argument("the launch's kernel is not a registered one");
}

const KernelInfo* find_kernel(std::string_view name) {
  for (const RegisteredKernel& each : kernels()) {
    if (each.info.name == name) return &each.info;
  }
  return nullptr;
}

std::vector<const KernelInfo*> all_kernels() {
  std::vector<const KernelInfo*> found;
  for (const RegisteredKernel& each : kernels()) found.push_back(&each.info);
  return found;
}

}  // namespace moestream::emu
