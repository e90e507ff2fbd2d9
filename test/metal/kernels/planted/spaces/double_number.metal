#include <metal_stdlib>
using namespace metal;
kernel void wrong(device float *out [[buffer(0)]]) {
  double sum = out[0];
  out[0] = float(sum);
}
