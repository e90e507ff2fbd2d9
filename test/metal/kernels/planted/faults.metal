// Kernels that are wrong on purpose, each in one way; test/metal/kernels.test.ts says what must catch it. All run with
// one threadgroup of 128 threads, 128 floats in buffer 0 and the number of threads in buffer 1.
#include <metal_stdlib>

using namespace metal;

kernel void missing_barrier(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                            uint thread_index [[thread_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[4];
  const float sum = simd_sum(float(thread_index));
  if (lane == 0) partial[simdgroup] = sum;
  // A threadgroup_barrier belongs here.
  out[thread_index] = simd_sum(lane < count / 32 ? partial[lane] : 0.0f);
}

kernel void simd_sum_as_fence(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                              uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float shared[128];
  shared[thread_index] = float(count);
  const float sum = simd_sum(1.0f);  // orders no memory
  out[thread_index] = shared[thread_index ^ 1] + sum;
}

kernel void barrier_after_return(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                                 uint thread_index [[thread_index_in_threadgroup]]) {
  if (thread_index >= count - 8) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[thread_index] = 1.0f;
}

kernel void two_barriers(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
  if (thread_index < count / 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[thread_index] = 1.0f;
}

kernel void beyond_buffer(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
  out[thread_index + count / 128] = 1.0f;
}

kernel void beyond_threadgroup_array(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                                     uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float first[128];
  threadgroup float second[128];
  first[thread_index] = 1.0f;
  second[thread_index] = 2.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[thread_index] = first[thread_index + count / 128] + second[thread_index];
}

kernel void uninitialised(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float shared[128];
  if (thread_index < count - 28) shared[thread_index] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[thread_index] = shared[127 - thread_index];
}

kernel void shuffle_from_inactive(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                                  uint thread_index [[thread_index_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]]) {
  float value = float(count);
  if (lane < 16) value = simd_shuffle_xor(value, ushort(16));
  out[thread_index] = value;
}

kernel void shuffle_beyond(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                           uint thread_index [[thread_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  out[thread_index] = simd_shuffle(float(count), ushort(lane + 1));
}

kernel void divergent_sum(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]]) {
  float sum = float(count);
  if (lane < 10) sum = simd_sum(1.0f);
  out[thread_index] = sum;
}

kernel void two_writers(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                        uint thread_index [[thread_index_in_threadgroup]]) {
  out[thread_index / 2] = float(count + thread_index);
}

kernel void too_much_memory(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                            uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float shared[8200];
  shared[thread_index] = float(count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[thread_index] = shared[thread_index];
}

kernel void nothing_wrong(device float *out [[buffer(0)]], constant uint &count [[buffer(1)]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[4];
  const float sum = simd_sum(float(thread_index));
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[thread_index] = simd_sum(lane < count / 32 ? partial[lane] : 0.0f);
}
