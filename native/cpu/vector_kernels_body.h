// The source that every vector_kernels_<set>.cpp compiles with its own instruction set flags.
//
// Everything is in an unnamed namespace and nothing from the standard library is called but memcpy: a function that
// the linker could share between these files would carry one set's instructions into code that runs without them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "elementary.h"
#include "vector_kernels.h"
#include "vector_kernels_kv.h"

namespace moestream::cpu {
namespace {

// Adds lane i and lane i + half until one is left: halves of all vectors first, then of the one that is left.
[[gnu::always_inline]] inline float sum_of_lanes(const Vector (&lanes)[kVectors]) {
  using Eight = float __attribute__((vector_size(32)));
  using Four = float __attribute__((vector_size(16)));
  Vector sum;
  if constexpr (kVectors == 2) {
    sum = lanes[0] + lanes[1];
  } else if constexpr (kVectors == 4) {
    sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  } else {
    sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
  float values[16] = {};
  std::memcpy(values, &sum, sizeof sum);
  if constexpr (kVectorFloats == 16) {
    const Eight eight = load_bytes<Eight>(values) + load_bytes<Eight>(values + 8);
    std::memcpy(values, &eight, sizeof eight);
  }
  if constexpr (kVectorFloats >= 8) {
    const Four four = load_bytes<Four>(values) + load_bytes<Four>(values + 4);
    std::memcpy(values, &four, sizeof four);
  }
  return (values[0] + values[2]) + (values[1] + values[3]);
}

template <class Rows, std::size_t kInputs>
[[gnu::always_inline]] inline void accumulate(Vector (&lanes)[kInputs][kVectors], const float* a,
                                              const std::uint8_t* const (&b)[kInputs]) {
  float scales[kInputs];
#pragma GCC unroll 8
  for (std::size_t n = 0; n < kInputs; ++n) scales[n] = Rows::scale(b[n]);
#pragma GCC unroll 8
  for (std::size_t v = 0; v < kVectors; ++v) {
    const Vector left = load_bytes<Vector>(a + v * kVectorFloats);
#pragma GCC unroll 8
    for (std::size_t n = 0; n < kInputs; ++n) lanes[n][v] += left * Rows::vector(b[n], v, scales[n]);
  }
}

template <class Rows, std::size_t kInputs>
[[gnu::always_inline]] inline void dots(const float* a, const std::uint8_t* const (&b)[kInputs], std::size_t count,
                                        float (&out)[kInputs]) {
  Vector lanes[kInputs][kVectors] = {};
  const std::size_t chunks = count / kLanes;
  const std::uint8_t* at[kInputs];
  for (std::size_t c = 0; c < chunks; ++c) {
    for (std::size_t n = 0; n < kInputs; ++n) at[n] = b[n] + c * Rows::kChunkBytes;
    accumulate<Rows, kInputs>(lanes, a + c * kLanes, at);
  }
  const std::size_t whole = chunks * kLanes;
  if (whole < count) {
    // The rest is padded with zeros and goes through the same lanes.
    float left[kLanes] = {};
    std::uint8_t right[kInputs][Rows::kChunkBytes] = {};
    std::memcpy(left, a + whole, (count - whole) * sizeof(float));
    for (std::size_t n = 0; n < kInputs; ++n) {
      std::memcpy(right[n], b[n] + chunks * Rows::kChunkBytes, Rows::bytes(count - whole));
      at[n] = right[n];
    }
    accumulate<Rows, kInputs>(lanes, left, at);
  }
  for (std::size_t n = 0; n < kInputs; ++n) out[n] = sum_of_lanes(lanes[n]);
}

inline const std::uint8_t* bytes_of(const float* values) { return reinterpret_cast<const std::uint8_t*>(values); }

float dot(const float* a, const float* b, std::size_t count) {
  const std::uint8_t* const inputs[1] = {bytes_of(b)};
  float out[1];
  dots<FloatRows, 1>(a, inputs, count, out);
  return out[0];
}

void dot_pair(const float* a, const float* b0, const float* b1, std::size_t count, float* out0, float* out1) {
  const std::uint8_t* const inputs[2] = {bytes_of(b0), bytes_of(b1)};
  float out[2];
  dots<FloatRows, 2>(a, inputs, count, out);
  *out0 = out[0];
  *out1 = out[1];
}

// Rows that go together, so that additions do not wait for each other; as many as registers hold.
constexpr std::size_t kRowsAtOnce = kVectorFloats / 4;

template <class Rows>
void dot_rows(const float* a, const KvRows& rows, float* out) {
  std::size_t p = 0;
  for (; p + kRowsAtOnce <= rows.count; p += kRowsAtOnce) {
    const std::uint8_t* at[kRowsAtOnce];
    for (std::size_t n = 0; n < kRowsAtOnce; ++n) at[n] = rows.data + (p + n) * rows.row_bytes;
    float sums[kRowsAtOnce];
    dots<Rows, kRowsAtOnce>(a, at, rows.width, sums);
    std::memcpy(out + p, sums, sizeof sums);
  }
  for (; p < rows.count; ++p) {
    const std::uint8_t* const at[1] = {rows.data + p * rows.row_bytes};
    float sum[1];
    dots<Rows, 1>(a, at, rows.width, sum);
    out[p] = sum[0];
  }
}

// out += row * weight for each row in rising order, for kChunks chunks of the rows; eight vectors stay in registers.
template <class Rows, std::size_t kChunks>
[[gnu::always_inline]] inline void add_rows(const std::uint8_t* data, std::size_t row_bytes, const float* weights,
                                            std::size_t count, float* out) {
  Vector sums[kChunks][kVectors];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kChunks * kVectors; ++i) {
    sums[i / kVectors][i % kVectors] = load_bytes<Vector>(out + i * kVectorFloats);
  }
  for (std::size_t p = 0; p < count; ++p) {
    const float weight = weights[p];
#pragma GCC unroll 8
    for (std::size_t c = 0; c < kChunks; ++c) {
      const std::uint8_t* const chunk = data + p * row_bytes + c * Rows::kChunkBytes;
      const float scale = Rows::scale(chunk);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kVectors; ++v) sums[c][v] += Rows::vector(chunk, v, scale) * weight;
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kChunks * kVectors; ++i) {
    std::memcpy(out + i * kVectorFloats, &sums[i / kVectors][i % kVectors], sizeof(Vector));
  }
}

template <class Rows>
[[gnu::always_inline]] inline void add_rest(const std::uint8_t* data, std::size_t row_bytes, const float* weights,
                                            std::size_t count, std::size_t values, float* out) {
  float sums[kLanes] = {};
  std::memcpy(sums, out, values * sizeof(float));
  for (std::size_t p = 0; p < count; ++p) {
    std::uint8_t rest[Rows::kChunkBytes] = {};
    std::memcpy(rest, data + p * row_bytes, Rows::bytes(values));
    add_rows<Rows, 1>(rest, 0, weights + p, 1, sums);
  }
  std::memcpy(out, sums, values * sizeof(float));
}

template <class Rows>
void sum_rows(const KvRows& rows, const float* weights, float* out) {
  constexpr std::size_t kWide = kVectorFloats / 4;  // chunks at once, while there are so many
  constexpr std::size_t kHalf = (kWide + 1) / 2;
  constexpr std::size_t kPart = 32;  // rows that stay in the first cache while their chunks are walked
  const std::size_t chunks = rows.width / kLanes;
  for (std::size_t i = 0; i < rows.width; ++i) out[i] = 0.0f;
  for (std::size_t p = 0; p < rows.count; p += kPart) {
    const std::size_t count = rows.count - p < kPart ? rows.count - p : kPart;
    const std::uint8_t* const data = rows.data + p * rows.row_bytes;
    std::size_t c = 0;
    for (; c + kWide <= chunks; c += kWide) {
      add_rows<Rows, kWide>(data + c * Rows::kChunkBytes, rows.row_bytes, weights + p, count, out + c * kLanes);
    }
    for (; c + kHalf <= chunks; c += kHalf) {
      add_rows<Rows, kHalf>(data + c * Rows::kChunkBytes, rows.row_bytes, weights + p, count, out + c * kLanes);
    }
    for (; c < chunks; ++c) {
      add_rows<Rows, 1>(data + c * Rows::kChunkBytes, rows.row_bytes, weights + p, count, out + c * kLanes);
    }
    if (c * kLanes < rows.width) {
      add_rest<Rows>(data + c * Rows::kChunkBytes, rows.row_bytes, weights + p, count, rows.width - c * kLanes,
                     out + c * kLanes);
    }
  }
}

template <class Rows>
constexpr KvKernels kv_kernels() {
  return {Rows::store, dot_rows<Rows>, sum_rows<Rows>};
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
