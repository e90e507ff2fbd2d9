#include <metal_stdlib>
using namespace metal;
kernel void wrong(constant float *x [[buffer(0)]], device float *out [[buffer(1)]]) {
  device const float *values = x;
  out[0] = values[0];
}
