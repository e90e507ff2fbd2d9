#include <metal_stdlib>
using namespace metal;
kernel void wrong(device float *out [[buffer(0)]]) {
  threadgroup float shared[4] = {0.0f};
  out[0] = shared[0];
}
