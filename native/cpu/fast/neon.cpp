// The products for 64-bit Arm with the dot product instructions (Armv8.2: Apple M1, Graviton 2 and later).
#include "neon_dot.h"
#include "sets.h"

namespace moestream::cpu {

const ProductKernels kNeonProducts{"neon", prepare_natural, one_sum_kernel<Neon>, gate_values};

}  // namespace moestream::cpu
