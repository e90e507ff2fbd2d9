// The choice of instruction set: a question to the processor, asked once.
#include "products.h"

#include <array>

#include "sets.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace moestream::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }

// Ice Lake, Zen 4 and later: byte permutations, 8-bit dot products and bit matrices come together.
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("gfni");
}
#endif

#if defined(__aarch64__)
bool has_dot_product() {
#if defined(__APPLE__)
  return true;  // every Apple processor that runs macOS
#elif defined(__linux__)
  constexpr unsigned long kAsimdDotProduct = 1ul << 20;
  return (getauxval(AT_HWCAP) & kAsimdDotProduct) != 0;
#else
  return false;
#endif
}

// The 8-bit matrix products. Only asked where there are dot products: the set uses both.
bool has_i8mm() {
#if defined(__APPLE__)
  int has = 0;
  std::size_t bytes = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &bytes, nullptr, 0) == 0 && has == 1;
#elif defined(__linux__)
  constexpr unsigned long kI8mm = 1ul << 13;
  return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#else
  return false;
#endif
}
#endif

struct Available {
  std::array<const ProductKernels*, 3> sets{};
  std::size_t count = 0;

  void add(const ProductKernels& set) { sets[count++] = &set; }
};

Available find_available() {
  Available found;
#if defined(__x86_64__)
  if (has_avx512()) found.add(kAvx512Products);
  if (has_avx2()) found.add(kAvx2Products);
#elif defined(__aarch64__)
  if (has_dot_product() && has_i8mm()) found.add(kNeonI8mmProducts);
  if (has_dot_product()) found.add(kNeonProducts);
#endif
  found.add(kPortableProducts);
  return found;
}

const Available& available() {
  static const Available found = find_available();
  return found;
}

}  // namespace

const ProductKernels& product_kernels() { return *available().sets[0]; }

std::span<const ProductKernels* const> all_product_kernels() {
  return {available().sets.data(), available().count};
}

}  // namespace moestream::cpu
