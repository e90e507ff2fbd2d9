// The inner loops for AVX-512F; compiled with -mavx512f, entered only where the processor has it.
#include "vector_kernels_body.h"
#include "vector_kernels_sets.h"

namespace moestream::cpu {

const VectorKernels kAvx512Kernels{"avx512",      dot,           dot_pair,         add_scaled, delta_step,
    convolve, multiply_silu, multiply_sigmoid, exponentials};

}  // namespace moestream::cpu
