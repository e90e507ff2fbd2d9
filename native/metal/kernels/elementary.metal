// What stands between the products: norms with the residual, SwiGLU, and the sum of the experts' outputs.
#include <metal_stdlib>

#include "arguments.h"
#include "functions.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

// normed = stream / sqrt(mean(stream^2) + epsilon) * weight. The stream takes the addend first.
kernel void rms_norm(device float *stream [[buffer(0)]],        // (rows, count)
                     device const float *addend [[buffer(1)]],  // (rows, count)
                     device const float *weight [[buffer(2)]],  // (count)
                     device float *normed [[buffer(3)]],        // (rows, count)
                     constant NormArguments &arguments [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                     uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[kRowThreads / kSimdWidth];
  const ulong row = ulong(group.x) * arguments.count;
  float4 squares = float4(0.0f);
  for (uint i = 4 * thread_index; i < arguments.count; i += 4 * kRowThreads) {
    float4 value = *(device const float4 *)(stream + row + i);
    if (arguments.add != 0) {
      value += *(device const float4 *)(addend + row + i);
      *(device float4 *)(stream + row + i) = value;
    }
    squares = fma(value, value, squares);
  }
  const float sum = threadgroup_sum((squares[0] + squares[1]) + (squares[2] + squares[3]), partial, lane, simdgroup,
                                    kRowThreads / kSimdWidth);
  const float scale = 1.0f / precise::sqrt(sum / float(arguments.count) + arguments.epsilon);
  for (uint i = 4 * thread_index; i < arguments.count; i += 4 * kRowThreads) {
    *(device float4 *)(normed + row + i) =
        *(device const float4 *)(stream + row + i) * scale * *(device const float4 *)(weight + i);
  }
}

kernel void swiglu(device const float *gate [[buffer(0)]], device const float *up [[buffer(1)]],
                   device float *out [[buffer(2)]], constant ElementArguments &arguments [[buffer(3)]],
                   uint3 position [[thread_position_in_grid]]) {
  if (position.x < arguments.count) out[position.x] = silu(gate[position.x]) * up[position.x];
}

// stream += sum over k in rising order of weights[k] * routed[k], and the shared expert's output through its gate; then
// the next norm. A row's choices are summed in the router's order, so it does not matter which expert ended first.
kernel void combine(device const float *routed [[buffer(0)]],        // (rows, choices, hidden)
                    device const float *route_weights [[buffer(1)]], // (rows, choices)
                    device const float *shared [[buffer(2)]],        // (rows, hidden)
                    device const float *shared_score [[buffer(3)]],  // (rows)
                    device float *stream [[buffer(4)]],              // (rows, hidden)
                    device const float *norm [[buffer(5)]],          // (hidden)
                    device float *normed [[buffer(6)]],              // (rows, hidden)
                    constant CombineArguments &arguments [[buffer(7)]],
                    uint3 group [[threadgroup_position_in_grid]],
                    uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[kRowThreads / kSimdWidth];
  const uint hidden = arguments.hidden;
  const ulong row = ulong(group.x) * hidden;
  device const float *weights = route_weights + group.x * arguments.choices;
  const float shared_gate = arguments.shared != 0 ? sigmoid(shared_score[group.x]) : 0.0f;
  float4 squares = float4(0.0f);
  for (uint i = 4 * thread_index; i < hidden; i += 4 * kRowThreads) {
    float4 sum = float4(0.0f);
#pragma unroll 4
    for (uint k = 0; k < arguments.choices; ++k) {
      sum += *(device const float4 *)(routed + row * arguments.choices + k * hidden + i) * weights[k];
    }
    if (arguments.shared != 0) sum += *(device const float4 *)(shared + row + i) * shared_gate;
    const float4 value = *(device const float4 *)(stream + row + i) + sum;
    *(device float4 *)(stream + row + i) = value;
    squares = fma(value, value, squares);
  }
  const float sum = threadgroup_sum((squares[0] + squares[1]) + (squares[2] + squares[3]), partial, lane, simdgroup,
                                    kRowThreads / kSimdWidth);
  if (arguments.norm == 0) return;
  const float scale = 1.0f / precise::sqrt(sum / float(hidden) + arguments.epsilon);
  for (uint i = 4 * thread_index; i < hidden; i += 4 * kRowThreads) {
    *(device float4 *)(normed + row + i) =
        *(device const float4 *)(stream + row + i) * scale * *(device const float4 *)(norm + i);
  }
}
