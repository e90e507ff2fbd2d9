// The source that every vector_kernels_<set>.cpp compiles with its own instruction set flags.
//
// Everything is in an unnamed namespace and nothing from the standard library is called but memcpy: a function that
// the linker could share between these files would carry one set's instructions into code that runs without them.
#pragma once

#include <cstddef>
#include <cstring>

#include "vector_kernels.h"

namespace moestream::cpu {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorFloats = 16;
#elif defined(__AVX__)
constexpr std::size_t kVectorFloats = 8;
#else
constexpr std::size_t kVectorFloats = 4;
#endif

constexpr std::size_t kLanes = 32;
constexpr std::size_t kVectors = kLanes / kVectorFloats;
using Vector = float __attribute__((vector_size(kVectorFloats * sizeof(float))));

// Adds lane i and lane i + half until one is left.
inline float sum_of_lanes(const Vector (&lanes)[kVectors]) {
  float values[kLanes];
  std::memcpy(values, lanes, sizeof values);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

template <std::size_t kInputs>
inline void accumulate(Vector (&lanes)[kInputs][kVectors], const float* a, const float* const (&b)[kInputs]) {
  for (std::size_t v = 0; v < kVectors; ++v) {
    Vector left;
    std::memcpy(&left, a + v * kVectorFloats, sizeof left);
    for (std::size_t n = 0; n < kInputs; ++n) {
      Vector right;
      std::memcpy(&right, b[n] + v * kVectorFloats, sizeof right);
      lanes[n][v] += left * right;
    }
  }
}

template <std::size_t kInputs>
inline void dots(const float* a, const float* const (&b)[kInputs], std::size_t count, float (&out)[kInputs]) {
  Vector lanes[kInputs][kVectors] = {};
  const std::size_t whole = count / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) {
    const float* at[kInputs];
    for (std::size_t n = 0; n < kInputs; ++n) at[n] = b[n] + i;
    accumulate<kInputs>(lanes, a + i, at);
  }
  if (whole < count) {
    // The rest is padded with zeros and goes through the same lanes.
    float left[kLanes] = {};
    float right[kInputs][kLanes] = {};
    const float* at[kInputs];
    std::memcpy(left, a + whole, (count - whole) * sizeof(float));
    for (std::size_t n = 0; n < kInputs; ++n) {
      std::memcpy(right[n], b[n] + whole, (count - whole) * sizeof(float));
      at[n] = right[n];
    }
    accumulate<kInputs>(lanes, left, at);
  }
  for (std::size_t n = 0; n < kInputs; ++n) out[n] = sum_of_lanes(lanes[n]);
}

float dot(const float* a, const float* b, std::size_t count) {
  const float* const inputs[1] = {b};
  float out[1];
  dots<1>(a, inputs, count, out);
  return out[0];
}

void dot_pair(const float* a, const float* b0, const float* b1, std::size_t count, float* out0, float* out1) {
  const float* const inputs[2] = {b0, b1};
  float out[2];
  dots<2>(a, inputs, count, out);
  *out0 = out[0];
  *out1 = out[1];
}

void add_scaled(float* __restrict into, const float* __restrict from, float scale, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) into[i] += from[i] * scale;
}

// S = S * decay; u = (v - S^T k) * beta; S = S + k (outer) u; o = S^T q. Both passes walk the state once in memory
// order, and every value column is summed over the keys in rising order whatever the vector width.
void delta_step(const DeltaStep& step) {
  const std::size_t size = step.head_dim;
  float* __restrict update = step.update;
  float* __restrict output = step.output;
  const float* __restrict value = step.value;
  for (std::size_t v = 0; v < size; ++v) update[v] = 0.0f;
  for (std::size_t k = 0; k < size; ++k) {
    float* __restrict row = step.state + k * size;
    const float key = step.key[k];
    for (std::size_t v = 0; v < size; ++v) {
      row[v] *= step.decay;
      update[v] += row[v] * key;
    }
  }
  for (std::size_t v = 0; v < size; ++v) {
    update[v] = (value[v] - update[v]) * step.beta;
    output[v] = 0.0f;
  }
  for (std::size_t k = 0; k < size; ++k) {
    float* __restrict row = step.state + k * size;
    const float key = step.key[k];
    const float query = step.query[k];
    for (std::size_t v = 0; v < size; ++v) {
      row[v] += update[v] * key;
      output[v] += row[v] * query;
    }
  }
}

}  // namespace
}  // namespace moestream::cpu
