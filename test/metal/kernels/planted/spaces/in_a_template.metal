#include <metal_stdlib>
using namespace metal;
template <typename T>
static inline float first(thread const T *values) {
  return float(values[0]);
}
template <typename T>
kernel void wrong(device const T *x [[buffer(0)]], device float *out [[buffer(1)]]) {
  out[0] = first(x);
}
typedef decltype(wrong<float>) wrong_entry;
template [[host_name("wrong_f32")]] kernel wrong_entry wrong<float>;
