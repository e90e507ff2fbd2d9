// Rotary position embedding over the first dimensions of a head, in pairs (j, j + half).
//
// Angles reach 262,144 radians: in float32 they would be wrong by 0.008, so angle, cosine and sine are computed in
// double and rounded once. They depend on the position only, so a step computes them once for all its layers and heads.
#pragma once

#include <cmath>
#include <cstddef>

namespace moestream::cpu {

// rotation is (rotary_dims): the cosines of all pairs, then their sines.
inline void fill_rotation(std::size_t position, std::size_t rotary_dims, double theta, float* rotation) {
  const std::size_t half = rotary_dims / 2;
  for (std::size_t j = 0; j < half; ++j) {
    const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(rotary_dims);
    const double angle = static_cast<double>(position) * std::pow(theta, exponent);
    rotation[j] = static_cast<float>(std::cos(angle));
    rotation[half + j] = static_cast<float>(std::sin(angle));
  }
}

inline void rotate(float* head, std::size_t rotary_dims, const float* rotation) {
  const std::size_t half = rotary_dims / 2;
  for (std::size_t j = 0; j < half; ++j) {
    const float first = head[j];
    const float second = head[half + j];
    head[j] = first * rotation[j] - second * rotation[half + j];
    head[half + j] = second * rotation[j] + first * rotation[half + j];
  }
}

}  // namespace moestream::cpu
