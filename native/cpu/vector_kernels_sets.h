// The tables that vector_kernels.cpp chooses from; on other processors than x86-64 only the first exists.
#pragma once

#include "vector_kernels.h"

namespace moestream::cpu {

extern const VectorKernels kBaselineKernels;
extern const VectorKernels kAvx2Kernels;
extern const VectorKernels kAvx512Kernels;

}  // namespace moestream::cpu
