// The inner loops, compiled once per instruction set and chosen when the process starts.
//
// All versions give the same bits: a dot product always runs in 32 float lanes (value i in lane i % 32, multiply then
// add, never fused) and ends in one fixed tree, so wider registers change only how many lanes go at a time. 32 lanes
// are two AVX-512, four AVX or eight SSE and NEON registers, enough to hide the latency of an addition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kv_type.h"

namespace moestream::cpu {

struct DeltaStep {
  float* state;        // (headDim keys, headDim values), updated in place
  const float* query;  // (headDim)
  const float* key;    // (headDim)
  const float* value;  // (headDim)
  float* update;       // (headDim), scratch
  float* output;       // (headDim)
  float decay;
  float beta;
  std::size_t head_dim;
};

// One row of the causal convolution and its SiLU, for channels [begin, end).
struct ConvolutionStep {
  const float* taps;  // (past + 1, channels), oldest first
  float* history;     // (past, channels), oldest first; slides by one row
  float* row;         // (channels), updated in place
  std::size_t past;
  std::size_t channels;
  std::size_t begin;
  std::size_t end;
};

// The keys or the values of one head: rows in one of the types of kv_type.h.
struct KvRows {
  const std::uint8_t* data;
  std::size_t row_bytes;
  std::size_t count;
  std::size_t width;  // values in a row
};

// Keys and values of one type. Sums are float32 in the lanes and the order of `dot` and `add_scaled`.
struct KvKernels {
  // One row, rounded to nearest, ties to even.
  void (*store)(const float* from, std::size_t width, std::uint8_t* into);
  // out[p] = dot(a, row p)
  void (*dot_rows)(const float* a, const KvRows& rows, float* out);
  // out = sum over rows in rising order of row * weight
  void (*sum_rows)(const KvRows& rows, const float* weights, float* out);
};

struct VectorKernels {
  const char* name;
  float (*dot)(const float* a, const float* b, std::size_t count);
  // Two dot products with the same `a`: bit for bit dot(a, b0) and dot(a, b1), for one reading of `a`.
  void (*dot_pair)(const float* a, const float* b0, const float* b1, std::size_t count, float* out0, float* out1);
  // into[i] += from[i] * scale
  void (*add_scaled)(float* into, const float* from, float scale, std::size_t count);
  // One token of the gated delta rule for one head.
  void (*delta_step)(const DeltaStep& step);
  // row[c] = silu(sum over taps of weight * input), see delta_net.cpp.
  void (*convolve)(const ConvolutionStep& step);
  // values[i] *= silu(gates[i]), and values[i] *= sigmoid(gates[i])
  void (*multiply_silu)(float* values, const float* gates, std::size_t count);
  void (*multiply_sigmoid)(float* values, const float* gates, std::size_t count);
  // values[i] = exp(values[i] - maximum)
  void (*exponentials)(float* values, float maximum, std::size_t count);
  KvKernels kv_f32;
  KvKernels kv_f16;
  KvKernels kv_q8_0;

  const KvKernels& kv(KvType type) const;
};

// The best version that this processor runs.
const VectorKernels& vector_kernels();

// Every version that this processor runs, the best first and the portable last.
std::span<const VectorKernels* const> all_vector_kernels();

}  // namespace moestream::cpu
