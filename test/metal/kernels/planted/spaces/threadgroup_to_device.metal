#include <metal_stdlib>
using namespace metal;
static inline float first(device const float *values) { return values[0]; }
kernel void wrong(device float *out [[buffer(0)]], uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[thread_index] = 1.0f;
  out[0] = first(shared);
}
