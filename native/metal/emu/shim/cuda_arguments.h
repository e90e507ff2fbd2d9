// A kernel's arguments on CUDA: buffers come in one struct by value, positions from special registers.
#pragma once

namespace moestream::ptx {

enum class Kind {
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

struct Buffers {
  void* at[31];
};

// Threadgroups of the kernels are one-dimensional: the thread's index is its x.
inline uint thread_index() { return static_cast<uint>(__nvvm_read_ptx_sreg_tid_x()); }
inline uint thread_count() { return static_cast<uint>(__nvvm_read_ptx_sreg_ntid_x()); }

inline uint3 group() {
  return uint3(__nvvm_read_ptx_sreg_ctaid_x(), __nvvm_read_ptx_sreg_ctaid_y(), __nvvm_read_ptx_sreg_ctaid_z());
}

inline uint3 groups() {
  return uint3(__nvvm_read_ptx_sreg_nctaid_x(), __nvvm_read_ptx_sreg_nctaid_y(), __nvvm_read_ptx_sreg_nctaid_z());
}

template <Kind kKind>
inline uint3 builtin() {
  if constexpr (kKind == Kind::kThreadPositionInGrid) {
    const uint3 at = group();
    return uint3(at.x * thread_count() + thread_index(), at.y, at.z);
  } else if constexpr (kKind == Kind::kThreadgroupPositionInGrid) {
    return group();
  } else if constexpr (kKind == Kind::kThreadgroupsPerGrid) {
    return groups();
  } else if constexpr (kKind == Kind::kThreadsPerThreadgroup) {
    return uint3(thread_count(), 1, 1);
  } else if constexpr (kKind == Kind::kThreadIndexInSimdgroup) {
    return uint3(thread_index() % 32, 0, 0);
  } else if constexpr (kKind == Kind::kSimdgroupIndexInThreadgroup) {
    return uint3(thread_index() / 32, 0, 0);
  } else if constexpr (kKind == Kind::kSimdgroupsPerThreadgroup) {
    return uint3((thread_count() + 31) / 32, 0, 0);
  } else {
    return uint3(thread_index(), 0, 0);
  }
}

template <Kind kKind, int kIndex>
struct Parameter {
  static constexpr Kind kParameterKind = kKind;
  static constexpr int kBufferIndex = kIndex;
};

template <class P, class Given>
struct Argument {
  static P get(const Buffers&) {
    const uint3 value = builtin<Given::kParameterKind>();
    if constexpr (sizeof(P) <= sizeof(uint)) {
      return static_cast<P>(value.x);
    } else {
      return value;
    }
  }
};
template <class T, class Given>
struct Argument<T*, Given> {
  static T* get(const Buffers& buffers) { return static_cast<T*>(buffers.at[Given::kBufferIndex]); }
};
template <class T, class Given>
struct Argument<T&, Given> {
  static T& get(const Buffers& buffers) { return *static_cast<T*>(buffers.at[Given::kBufferIndex]); }
};

template <auto kFunction>
struct Caller;
template <class... P, void (*kFunction)(P...)>
struct Caller<kFunction> {
  template <class... Given>
  static void run(const Buffers& buffers) {
    kFunction(Argument<P, Given>::get(buffers)...);
  }
};

template <auto kFunction, class... Given>
inline void call(const Buffers& buffers) {
  Caller<kFunction>::template run<Given...>(buffers);
}

}  // namespace moestream::ptx
