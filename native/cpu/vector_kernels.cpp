// The choice of instruction set: a question to the processor, asked once.
#include "vector_kernels.h"

#include "vector_kernels_sets.h"

namespace moestream::cpu {
namespace {

const VectorKernels& choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return kAvx512Kernels;
  if (__builtin_cpu_supports("avx2")) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

}  // namespace

const VectorKernels& vector_kernels() {
  static const VectorKernels& chosen = choose();
  return chosen;
}

}  // namespace moestream::cpu
