#include <metal_stdlib>
using namespace metal;
kernel void wrong(device float *out, uint index [[thread_index_in_threadgroup]]) { out[index] = 1.0f; }
