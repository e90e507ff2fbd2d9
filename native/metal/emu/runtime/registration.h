// How generated code makes its kernels known: C++ deduces the types of a kernel's parameters, the generator adds what
// its attributes say, and both together fetch the arguments of a lane.
#pragma once

#include "lanes.h"

namespace moestream::emu {

enum class ParameterKind : uint8_t {
  kBuffer,
  kThreadgroupMemory,
  kThreadPositionInGrid,
  kThreadgroupPositionInGrid,
  kThreadPositionInThreadgroup,
  kThreadsPerThreadgroup,
  kThreadgroupsPerGrid,
  kThreadIndexInThreadgroup,
  kThreadIndexInSimdgroup,
  kSimdgroupIndexInThreadgroup,
  kSimdgroupsPerThreadgroup,
};

struct Parameter {
  ParameterKind kind;
  uint8_t index;
};

struct KernelEntry {
  const char* name;
  const char* library;
  uint32_t max_threads;
  uint32_t parameter_count;
  const Parameter* parameters;
  uint32_t written;  // bit i: parameter i is a pointer that can be written through
  void (*run)(const Lane&, const LaunchState&, const Parameter*);
};

struct Registration {
  explicit Registration(const KernelEntry& entry);
};

// A function constant's variable; a launch fills it.
struct ConstantSlot {
  ConstantSlot(uint32_t index, void* variable, size_t bytes);
};

inline Triple builtin(ParameterKind kind, const Lane& lane, const LaunchState& launch) {
  const Threadgroup& group = *lane.threadgroup;
  switch (kind) {
    case ParameterKind::kThreadgroupPositionInGrid: return group.position;
    case ParameterKind::kThreadPositionInThreadgroup: return lane.position;
    case ParameterKind::kThreadsPerThreadgroup: return launch.threads;
    case ParameterKind::kThreadgroupsPerGrid: return launch.threadgroups;
    case ParameterKind::kThreadIndexInThreadgroup: return {{lane.index, 0, 0}};
    case ParameterKind::kThreadIndexInSimdgroup: return {{lane.lane, 0, 0}};
    case ParameterKind::kSimdgroupIndexInThreadgroup: return {{lane.simdgroup_index, 0, 0}};
    case ParameterKind::kSimdgroupsPerThreadgroup: return {{group.simdgroups, 0, 0}};
    default: break;
  }
  Triple grid;
  for (int i = 0; i < 3; ++i) grid.v[i] = group.position.v[i] * launch.threads.v[i] + lane.position.v[i];
  return grid;
}

template <class P>
struct Argument {
  static constexpr bool kWritten = false;
  static P get(Parameter parameter, const Lane& lane, const LaunchState& launch) {
    const Triple value = builtin(parameter.kind, lane, launch);
    if constexpr (sizeof(P) <= sizeof(uint32_t)) {
      return static_cast<P>(value.v[0]);
    } else {
      return P(value);
    }
  }
};

template <class T>
struct IsConst {
  static constexpr bool kValue = false;
};
template <class T>
struct IsConst<const T> {
  static constexpr bool kValue = true;
};

template <class T>
struct Argument<T*> {
  static constexpr bool kWritten = !IsConst<T>::kValue;
  static T* get(Parameter parameter, const Lane& lane, const LaunchState& launch) {
    const Threadgroup& group = *lane.threadgroup;
    if (parameter.kind == ParameterKind::kBuffer) return static_cast<T*>(launch.buffers[parameter.index]);
    return reinterpret_cast<T*>(group.memory + group.given_offsets[parameter.index]);
  }
};

template <class T>
struct Argument<T&> {
  static constexpr bool kWritten = !IsConst<T>::kValue;
  static T& get(Parameter parameter, const Lane&, const LaunchState& launch) {
    return *static_cast<T*>(launch.buffers[parameter.index]);
  }
};

template <uint32_t... kIndices>
struct Indices {};
template <uint32_t kCount, uint32_t... kIndices>
struct CountUp : CountUp<kCount - 1, kCount - 1, kIndices...> {};
template <uint32_t... kIndices>
struct CountUp<0, kIndices...> {
  using Type = Indices<kIndices...>;
};

template <auto kFunction>
struct Caller;

template <class... P, void (*kFunction)(P...)>
struct Caller<kFunction> {
  static constexpr uint32_t kCount = sizeof...(P);

  template <uint32_t... kIndices>
  static void call(const Lane& lane, const LaunchState& launch, const Parameter* parameters, Indices<kIndices...>) {
    kFunction(Argument<P>::get(parameters[kIndices], lane, launch)...);
  }

  static void run(const Lane& lane, const LaunchState& launch, const Parameter* parameters) {
    call(lane, launch, parameters, typename CountUp<kCount>::Type());
  }

  static constexpr uint32_t written() {
    uint32_t mask = 0;
    uint32_t index = 0;
    ((mask |= (Argument<P>::kWritten ? 1u : 0u) << index++), ...);
    return mask;
  }
};

template <auto kFunction, uint32_t kCount>
Registration registration(const char* name, const char* library, uint32_t max_threads,
                          const Parameter (&parameters)[kCount]) {
  static_assert(Caller<kFunction>::kCount == kCount, "every parameter has its attribute");
  return Registration(
      {name, library, max_threads, kCount, parameters, Caller<kFunction>::written(), &Caller<kFunction>::run});
}

}  // namespace moestream::emu
