// The inner loops for AVX2 (2013 on); compiled with -mavx2 -mf16c, entered only where the processor has them.
#include "vector_kernels_body.h"
#include "vector_kernels_sets.h"

namespace moestream::cpu {

const VectorKernels kAvx2Kernels{"avx2", dot, dot_pair, add_scaled, delta_step, convolve, multiply_silu,
                                     multiply_sigmoid, exponentials, kv_kernels<FloatRows>(), kv_kernels<HalfRows>(),
                                     kv_kernels<ByteRows>()};

}  // namespace moestream::cpu
