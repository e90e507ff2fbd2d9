// The two normalisations, each for one vector.
//
// The sum of squares runs through the fixed lanes of the dot product, so a row's norm has the same bits alone and in a
// batch. The weights already include the 1 that some checkpoints keep apart.
#pragma once

#include <cmath>
#include <cstddef>

#include "vector_kernels.h"

namespace moestream::cpu {

// out = x / sqrt(mean(x^2) + epsilon) * weight; `out` may be `x`.
inline void rms_norm(const VectorKernels& kernels, const float* x, const float* weight, float epsilon,
                     std::size_t count, float* out) {
  const float mean_square = kernels.dot(x, x, count) / static_cast<float>(count);
  const float scale = 1.0f / std::sqrt(mean_square + epsilon);
  for (std::size_t i = 0; i < count; ++i) out[i] = x[i] * scale * weight[i];
}

// out = x / sqrt(sum(x^2) + 1e-6) * factor: DeltaNet's queries and keys.
inline void l2_norm(const VectorKernels& kernels, const float* x, float factor, std::size_t count, float* out) {
  constexpr float kEpsilon = 1e-6f;
  const float scale = 1.0f / std::sqrt(kernels.dot(x, x, count) + kEpsilon);
  for (std::size_t i = 0; i < count; ++i) out[i] = x[i] * scale * factor;
}

}  // namespace moestream::cpu
