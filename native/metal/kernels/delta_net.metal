// Gated DeltaNet: the convolution, and the delta rule of one value head per threadgroup.
//
// A state is (head_dim keys, head_dim values) and stays in registers for all rows of a run: kDeltaParts neighbouring
// lanes share one column of it, each with every fourth key, so sums over the keys need two shuffles and no memory.
// `delta_step` takes a run's rows one by one. `delta_chunk` takes kDeltaChunk at a time: with the decay from row s to
// row t written D(t, s),
//   u_t = beta_t (v_t - D(t, 0) S^T k_t - sum over s < t of D(t, s) (k_s . k_t) u_s)
//   o_t = D(t, 0) S^T q_t + sum over s <= t of D(t, s) (k_s . q_t) u_s
//   S'  = D(n, 0) S + sum over s of D(n, s) k_s u_s^T
// and the columns of a state are independent, so within a chunk no thread waits for another.
#include <metal_stdlib>

#include "arguments.h"
#include "functions.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

// y[c] = silu(sum over taps of taps[t][c] * input[now - last + t][c]), in place; one thread per channel.
kernel void convolve(device const float *taps [[buffer(0)]],  // (taps, channels), oldest first
                     device float *history [[buffer(1)]],     // (taps - 1, channels), oldest first
                     device float *rows [[buffer(2)]],        // (step rows, channels)
                     constant ConvolveArguments &arguments [[buffer(3)]],
                     uint3 position [[thread_position_in_grid]]) {
  const uint channels = arguments.channels;
  const uint channel = position.x;
  if (channel >= channels) return;
  const uint past = arguments.taps - 1;
  float inputs[kMaxConvKernel];
  for (uint t = 0; t < past; ++t) inputs[t] = history[t * channels + channel];
  for (uint r = arguments.first_row; r < arguments.first_row + arguments.rows; ++r) {
    inputs[past] = rows[ulong(r) * channels + channel];
    float sum = 0.0f;
    for (uint t = 0; t <= past; ++t) sum += taps[t * channels + channel] * inputs[t];
    rows[ulong(r) * channels + channel] = silu(sum);
    for (uint t = 0; t < past; ++t) inputs[t] = inputs[t + 1];
  }
  for (uint t = 0; t < past; ++t) history[t * channels + channel] = inputs[t];
}

constant constexpr uint kKeysPerThread = kDeltaMaxDim / kDeltaParts;

// Where a value head's inputs stand.
struct DeltaHead {
  uint value_head;
  uint key_head;
  uint dim;
};

static inline DeltaHead delta_head(constant DeltaArguments &arguments, uint value_head) {
  DeltaHead head;
  head.value_head = value_head;
  head.key_head = arguments.tiled != 0 ? value_head % arguments.key_heads
                                       : value_head / (arguments.value_heads / arguments.key_heads);
  head.dim = arguments.head_dim;
  return head;
}

// One simdgroup: out = from / sqrt(sum(from^2) + 1e-6) * factor.
static inline void unit_vector(device const float *from, uint dim, float factor, threadgroup float *out, uint lane) {
  float squares = 0.0f;
  for (uint i = lane; i < dim; i += kSimdWidth) squares += from[i] * from[i];
  const float scale = 1.0f / precise::sqrt(simd_sum(squares) + 1e-6f);
  for (uint i = lane; i < dim; i += kSimdWidth) out[i] = from[i] * scale * factor;
}

// The query (factor 1 / sqrt(dim)) or the key of a row.
static inline void row_vector(device const float *conv, constant DeltaArguments &arguments, DeltaHead head, uint row,
                              bool is_key, threadgroup float *out, uint lane) {
  const uint key_width = arguments.key_heads * head.dim;
  device const float *from = conv + ulong(row) * arguments.channels + (is_key ? key_width : 0) + head.key_head * head.dim;
  const float factor = is_key ? 1.0f : 1.0f / precise::sqrt(float(head.dim));
  unit_vector(from, head.dim, factor, out, lane);
}

static inline uint gate_index(constant DeltaArguments &arguments, uint row, uint value_head, uint which) {
  if (arguments.joined == 0) return row * arguments.value_heads + value_head;
  const uint group = arguments.value_heads / arguments.key_heads;
  return row * 2 * arguments.value_heads + value_head / group * 2 * group + which * group + value_head % group;
}

struct DeltaGates {
  float beta;
  float decay;
};

static inline DeltaGates delta_gates(device const float *beta, device const float *alpha, device const float *decay_rate,
                                     device const float *decay_bias, constant DeltaArguments &arguments, uint row,
                                     uint value_head) {
  DeltaGates gates;
  gates.beta = sigmoid(beta[gate_index(arguments, row, value_head, 0)]);
  const float step = softplus(alpha[gate_index(arguments, row, value_head, 1)] + decay_bias[value_head]);
  gates.decay = exp_float(decay_rate[value_head] * step);
  return gates;
}

// One simdgroup: the head's output of a row through its norm and its gate.
static inline void write_output(threadgroup const float *output, device const float *norm, device const float *z,
                                device float *out, constant DeltaArguments &arguments, DeltaHead head, uint row,
                                uint lane) {
  const ulong at = (ulong(row) * arguments.value_heads + head.value_head) * head.dim;
  float squares = 0.0f;
  for (uint i = lane; i < head.dim; i += kSimdWidth) squares += output[i] * output[i];
  const float scale = 1.0f / precise::sqrt(simd_sum(squares) / float(head.dim) + arguments.epsilon);
  for (uint i = lane; i < head.dim; i += kSimdWidth) out[at + i] = output[i] * scale * norm[i] * silu(z[at + i]);
}

// Of kDeltaParts neighbouring lanes.
static inline float sum_of_parts(float value) {
  value += simd_shuffle_xor(value, ushort(1));
  value += simd_shuffle_xor(value, ushort(2));
  return value;
}

kernel void delta_step(device float *state [[buffer(0)]],          // (value_heads, head_dim, head_dim)
                       device const float *conv [[buffer(1)]],     // (step rows, channels)
                       device const float *beta [[buffer(2)]], device const float *alpha [[buffer(3)]],
                       device const float *decay_rate [[buffer(4)]], device const float *decay_bias [[buffer(5)]],
                       device const float *norm [[buffer(6)]],  // (head_dim)
                       device const float *z [[buffer(7)]],     // (step rows, value_heads * head_dim)
                       device float *out [[buffer(8)]],         // (step rows, value_heads * head_dim)
                       constant DeltaArguments &arguments [[buffer(9)]],
                       uint3 group [[threadgroup_position_in_grid]],
                       uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float queries[kDeltaMaxDim];
  threadgroup float keys[kDeltaMaxDim];
  threadgroup float outputs[kDeltaMaxDim];
  threadgroup float gates[2];

  const DeltaHead head = delta_head(arguments, group.x);
  const uint dim = head.dim;
  const uint column = thread_index / kDeltaParts;
  const uint part = thread_index % kDeltaParts;
  const uint key_count = dim / kDeltaParts;
  device float *mine = state + ulong(head.value_head) * dim * dim + part * dim + column;
  const uint key_stride = kDeltaParts * dim;
  float kept[kKeysPerThread];
#pragma unroll
  for (uint i = 0; i < kKeysPerThread; ++i) kept[i] = i < key_count ? mine[i * key_stride] : 0.0f;

  for (uint row = arguments.first_row; row < arguments.first_row + arguments.rows; ++row) {
    if (simdgroup == 0) row_vector(conv, arguments, head, row, false, queries, lane);
    if (simdgroup == 1 % simdgroups) row_vector(conv, arguments, head, row, true, keys, lane);
    if (simdgroup == 2 % simdgroups && lane == 0) {
      const DeltaGates found =
          delta_gates(beta, alpha, decay_rate, decay_bias, arguments, row, head.value_head);
      gates[0] = found.beta;
      gates[1] = found.decay;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const ulong value_at = ulong(row) * arguments.channels + 2 * arguments.key_heads * dim + head.value_head * dim;
    float read = 0.0f;
#pragma unroll
    for (uint i = 0; i < kKeysPerThread; ++i) {
      if (i >= key_count) continue;
      kept[i] *= gates[1];
      read = fma(kept[i], keys[kDeltaParts * i + part], read);
    }
    const float update = (conv[value_at + column] - sum_of_parts(read)) * gates[0];
    float output = 0.0f;
#pragma unroll
    for (uint i = 0; i < kKeysPerThread; ++i) {
      if (i >= key_count) continue;
      kept[i] = fma(keys[kDeltaParts * i + part], update, kept[i]);
      output = fma(kept[i], queries[kDeltaParts * i + part], output);
    }
    output = sum_of_parts(output);
    if (part == 0) outputs[column] = output;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 3 % simdgroups) write_output(outputs, norm, z, out, arguments, head, row, lane);
  }
  for (uint i = 0; i < key_count; ++i) mine[i * key_stride] = kept[i];
}

kernel void delta_chunk(device float *state [[buffer(0)]],      // (value_heads, head_dim, head_dim)
                        device const float *conv [[buffer(1)]], // (step rows, channels)
                        device const float *beta [[buffer(2)]], device const float *alpha [[buffer(3)]],
                        device const float *decay_rate [[buffer(4)]], device const float *decay_bias [[buffer(5)]],
                        device const float *norm [[buffer(6)]],  // (head_dim)
                        device const float *z [[buffer(7)]],     // (step rows, value_heads * head_dim)
                        device float *out [[buffer(8)]],         // (step rows, value_heads * head_dim)
                        constant DeltaArguments &arguments [[buffer(9)]],
                        uint3 group [[threadgroup_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float queries[kDeltaChunk * kDeltaMaxDim];
  threadgroup float keys[kDeltaChunk * kDeltaMaxDim];
  threadgroup float outputs[kDeltaChunk * kDeltaMaxDim];
  threadgroup float key_products[kDeltaChunk * kDeltaChunk];    // (t, s): D(t, s) (k_s . k_t)
  threadgroup float query_products[kDeltaChunk * kDeltaChunk];  // (t, s): D(t, s) (k_s . q_t)
  threadgroup float betas[kDeltaChunk];
  threadgroup float decays[kDeltaChunk];

  const DeltaHead head = delta_head(arguments, group.x);
  const uint dim = head.dim;
  const uint column = thread_index / kDeltaParts;
  const uint part = thread_index % kDeltaParts;
  const uint key_count = dim / kDeltaParts;
  device float *mine = state + ulong(head.value_head) * dim * dim + part * dim + column;
  const uint key_stride = kDeltaParts * dim;
  float kept[kKeysPerThread];
#pragma unroll
  for (uint i = 0; i < kKeysPerThread; ++i) kept[i] = i < key_count ? mine[i * key_stride] : 0.0f;

  for (uint done = 0; done < arguments.rows; done += kDeltaChunk) {
    const uint first = arguments.first_row + done;
    const uint count = min(arguments.rows - done, kDeltaChunk + 0u);
    for (uint v = simdgroup; v < 2 * count; v += simdgroups) {
      const bool is_key = v % 2 == 1;
      threadgroup float *into = is_key ? keys : queries;
      row_vector(conv, arguments, head, first + v / 2, is_key, into + v / 2 * dim, lane);
    }
    if (thread_index < count) {
      const DeltaGates found = delta_gates(beta, alpha, decay_rate, decay_bias, arguments, first + thread_index,
                                           head.value_head);
      betas[thread_index] = found.beta;
      decays[thread_index] = found.decay;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint pair = simdgroup; pair < count * count; pair += simdgroups) {
      const uint t = pair / count;
      const uint s = pair % count;
      if (s > t) continue;
      float decay = 1.0f;
      for (uint between = s + 1; between <= t; ++between) decay *= decays[between];
      float with_key = 0.0f;
      float with_query = 0.0f;
      for (uint i = lane; i < dim; i += kSimdWidth) {
        with_key = fma(keys[s * dim + i], keys[t * dim + i], with_key);
        with_query = fma(keys[s * dim + i], queries[t * dim + i], with_query);
      }
      with_key = simd_sum(with_key);
      with_query = simd_sum(with_query);
      if (lane == 0) {
        key_products[t * kDeltaChunk + s] = with_key * decay;
        query_products[t * kDeltaChunk + s] = with_query * decay;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float updates[kDeltaChunk];  // in memory: indexed by a row, so that the state keeps the registers
    float decayed = 1.0f;  // D(t, 0)
#pragma unroll 1
    for (uint t = 0; t < count; ++t) {
      decayed *= decays[t];
      float read = 0.0f;
      float output = 0.0f;
#pragma unroll
      for (uint i = 0; i < kKeysPerThread; ++i) {
        if (i >= key_count) continue;
        read = fma(kept[i], keys[t * dim + kDeltaParts * i + part], read);
        output = fma(kept[i], queries[t * dim + kDeltaParts * i + part], output);
      }
      read = sum_of_parts(read) * decayed;
      output = sum_of_parts(output) * decayed;
      for (uint s = 0; s < t; ++s) {
        read = fma(key_products[t * kDeltaChunk + s], updates[s], read);
        output = fma(query_products[t * kDeltaChunk + s], updates[s], output);
      }
      const ulong value_at =
          ulong(first + t) * arguments.channels + 2 * arguments.key_heads * dim + head.value_head * dim;
      updates[t] = (conv[value_at + column] - read) * betas[t];
      output = fma(query_products[t * kDeltaChunk + t], updates[t], output);
      if (part == 0) outputs[t * dim + column] = output;
    }

#pragma unroll
    for (uint i = 0; i < kKeysPerThread; ++i) kept[i] *= decayed;
    float later = 1.0f;  // D(count, s)
#pragma unroll 1
    for (uint back = 0; back < count; ++back) {
      const uint s = count - 1 - back;
      const float scaled_update = updates[s] * later;
#pragma unroll
      for (uint i = 0; i < kKeysPerThread; ++i) {
        if (i < key_count) kept[i] = fma(keys[s * dim + kDeltaParts * i + part], scaled_update, kept[i]);
      }
      later *= decays[s];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint t = simdgroup; t < count; t += simdgroups) {
      write_output(outputs + t * dim, norm, z, out, arguments, head, first + t, lane);
    }
  }
  for (uint i = 0; i < key_count; ++i) mine[i * key_stride] = kept[i];
}
