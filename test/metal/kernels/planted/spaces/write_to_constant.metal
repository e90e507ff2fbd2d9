#include <metal_stdlib>
using namespace metal;
kernel void wrong(constant float *x [[buffer(0)]]) { x[0] = 1.0f; }
