// The inner loops for the least that the target promises: SSE2 on x86-64, NEON on ARM64.
#include "vector_kernels_body.h"
#include "vector_kernels_sets.h"

namespace moestream::cpu {

const VectorKernels kBaselineKernels{"baseline", dot, dot_pair, add_scaled, delta_step, convolve, multiply_silu,
                                     multiply_sigmoid, exponentials, kv_kernels<FloatRows>(), kv_kernels<HalfRows>(),
                                     kv_kernels<ByteRows>()};

}  // namespace moestream::cpu
