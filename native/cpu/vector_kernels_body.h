// The source that every vector_kernels_<set>.cpp compiles with its own instruction set flags.
//
// Everything is in an unnamed namespace and nothing from the standard library is called but memcpy: a function that
// the linker could share between these files would carry one set's instructions into code that runs without them.
#pragma once

#include <cstddef>
#include <cstring>

#include "elementary.h"
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

// Rows of the state that go together: sums over keys then pass through memory once per four keys.
constexpr std::size_t kStateRows = 4;

// sums[v] += row[v] * key for each row in rising order, after row[v] *= decay.
template <std::size_t kRows>
inline void decay_and_read(float* __restrict rows, const float* __restrict keys, float decay, std::size_t size,
                           float* __restrict sums) {
  for (std::size_t v = 0; v < size; ++v) {
    float sum = sums[v];
    for (std::size_t k = 0; k < kRows; ++k) {
      const float value = rows[k * size + v] * decay;
      rows[k * size + v] = value;
      sum += value * keys[k];
    }
    sums[v] = sum;
  }
}

// row[v] += update[v] * key, then sums[v] += row[v] * query, for each row in rising order.
template <std::size_t kRows>
inline void write_and_read(float* __restrict rows, const float* __restrict update, const float* __restrict keys,
                           const float* __restrict queries, std::size_t size, float* __restrict sums) {
  for (std::size_t v = 0; v < size; ++v) {
    float sum = sums[v];
    for (std::size_t k = 0; k < kRows; ++k) {
      const float value = rows[k * size + v] + update[v] * keys[k];
      rows[k * size + v] = value;
      sum += value * queries[k];
    }
    sums[v] = sum;
  }
}

// S = S * decay; u = (v - S^T k) * beta; S = S + k (outer) u; o = S^T q. Both passes walk the state once in memory
// order, and every value column is summed over the keys in rising order whatever the vector width.
void delta_step(const DeltaStep& step) {
  const std::size_t size = step.head_dim;
  const std::size_t whole = size / kStateRows * kStateRows;
  float* __restrict update = step.update;
  float* __restrict output = step.output;
  const float* __restrict value = step.value;
  for (std::size_t v = 0; v < size; ++v) update[v] = 0.0f;
  for (std::size_t k = 0; k < whole; k += kStateRows) {
    decay_and_read<kStateRows>(step.state + k * size, step.key + k, step.decay, size, update);
  }
  for (std::size_t k = whole; k < size; ++k) {
    decay_and_read<1>(step.state + k * size, step.key + k, step.decay, size, update);
  }
  for (std::size_t v = 0; v < size; ++v) {
    update[v] = (value[v] - update[v]) * step.beta;
    output[v] = 0.0f;
  }
  for (std::size_t k = 0; k < whole; k += kStateRows) {
    write_and_read<kStateRows>(step.state + k * size, update, step.key + k, step.query + k, size, output);
  }
  for (std::size_t k = whole; k < size; ++k) {
    write_and_read<1>(step.state + k * size, update, step.key + k, step.query + k, size, output);
  }
}

void multiply_silu(float* __restrict values, const float* __restrict gates, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] *= silu(gates[i]);
}

void multiply_sigmoid(float* __restrict values, const float* __restrict gates, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] *= sigmoid(gates[i]);
}

void exponentials(float* values, float maximum, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = exp_float(values[i] - maximum);
}

void convolve(const ConvolutionStep& step) {
  constexpr std::size_t kPart = 64;
  for (std::size_t begin = step.begin; begin < step.end; begin += kPart) {
    const std::size_t count = step.end - begin < kPart ? step.end - begin : kPart;
    float sums[kPart] = {};
    float* __restrict row = step.row + begin;
    for (std::size_t t = 0; t < step.past; ++t) {
      const float* __restrict taps = step.taps + t * step.channels + begin;
      const float* __restrict inputs = step.history + t * step.channels + begin;
      for (std::size_t c = 0; c < count; ++c) sums[c] += taps[c] * inputs[c];
    }
    const float* __restrict newest = step.taps + step.past * step.channels + begin;
    for (std::size_t c = 0; c < count; ++c) sums[c] += newest[c] * row[c];
    for (std::size_t t = 0; t + 1 < step.past; ++t) {
      float* __restrict into = step.history + t * step.channels + begin;
      for (std::size_t c = 0; c < count; ++c) into[c] = into[c + step.channels];
    }
    if (step.past > 0) {
      std::memcpy(step.history + (step.past - 1) * step.channels + begin, row, count * sizeof(float));
    }
    for (std::size_t c = 0; c < count; ++c) row[c] = silu(sums[c]);
  }
}

}  // namespace
}  // namespace moestream::cpu
