// The choice of instruction set: a question to the processor, asked once.
#include "vector_kernels.h"

#include <array>

#include "vector_kernels_sets.h"

namespace moestream::cpu {
namespace {

struct Available {
  std::array<const VectorKernels*, 3> sets{};
  std::size_t count = 0;

  void add(const VectorKernels& set) { sets[count++] = &set; }
};

Available find_available() {
  Available found;
#if defined(__x86_64__)
  const bool f16c = __builtin_cpu_supports("f16c");
  if (f16c && __builtin_cpu_supports("avx512f")) found.add(kAvx512Kernels);
  if (f16c && __builtin_cpu_supports("avx2")) found.add(kAvx2Kernels);
#endif
  found.add(kBaselineKernels);
  return found;
}

const Available& available() {
  static const Available found = find_available();
  return found;
}

}  // namespace

const KvKernels& VectorKernels::kv(KvType type) const {
  switch (type) {
    case KvType::kF16: return kv_f16;
    case KvType::kQ8_0: return kv_q8_0;
    case KvType::kF32: break;
  }
  return kv_f32;
}

const VectorKernels& vector_kernels() { return *available().sets[0]; }

std::span<const VectorKernels* const> all_vector_kernels() {
  return {available().sets.data(), available().count};
}

}  // namespace moestream::cpu
