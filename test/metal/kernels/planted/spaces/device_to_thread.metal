#include <metal_stdlib>
using namespace metal;
static inline float first(thread const float *values) { return values[0]; }
kernel void wrong(device const float *x [[buffer(0)]], device float *out [[buffer(1)]]) { out[0] = first(x); }
