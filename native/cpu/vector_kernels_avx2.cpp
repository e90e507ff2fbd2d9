// The inner loops for AVX2 (2013 on); compiled with -mavx2, entered only where the processor has it.
#include "vector_kernels_body.h"
#include "vector_kernels_sets.h"

namespace moestream::cpu {

const VectorKernels kAvx2Kernels{"avx2",      dot,           dot_pair,         add_scaled, delta_step,
    convolve, multiply_silu, multiply_sigmoid, exponentials};

}  // namespace moestream::cpu
