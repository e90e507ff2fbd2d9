// The elementary functions of the forward pass, written out: Metal's exp and log may differ between chips and from the
// CPU's by more than the whole forward pass is allowed to.
#pragma once

#include <metal_stdlib>

namespace moestream {
namespace gpu {

using namespace metal;

// 2^power for |power| up to 252, in two factors so that neither leaves the range of normal numbers.
static inline float scaled(float x, int power) {
  const int first = power / 2;
  const int second = power - first;
  return x * as_type<float>(uint(first + 127) << 23) * as_type<float>(uint(second + 127) << 23);
}

// Error below one unit in the last place.
static inline float exp_float(float x) {
  const float inside = clamp(x, -104.0f, 89.0f);
  const float power = rint(inside * 1.44269504f);
  float r = fma(power, -0.693145752f, inside);
  r = fma(power, -1.42860677e-6f, r);  // |r| <= ln(2) / 2
  float sum = 1.0f / 5040.0f;
  sum = fma(sum, r, 1.0f / 720.0f);
  sum = fma(sum, r, 1.0f / 120.0f);
  sum = fma(sum, r, 1.0f / 24.0f);
  sum = fma(sum, r, 1.0f / 6.0f);
  sum = fma(sum, r, 0.5f);
  sum = fma(sum, r, 1.0f);
  sum = fma(sum, r, 1.0f);
  const float result = scaled(sum, int(power));
  return x != x ? x : result;  // a NaN stays one
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_float(-x)); }

static inline float silu(float x) { return x * sigmoid(x); }

// log(1 + e) for e >= 0.
static inline float log1p_float(float e) {
  const float u = 1.0f + e;
  const float lost = (e - (u - 1.0f)) / u;  // what rounding 1 + e left out
  const int bits = as_type<int>(u);
  const int power = (bits - 0x3f3504f3) >> 23;  // u = m * 2^power with m from sqrt(1/2) to sqrt(2)
  const float m = as_type<float>(bits - (power << 23));
  const float s = (m - 1.0f) / (m + 1.0f);
  const float q = s * s;
  float sum = 2.0f / 11.0f;
  sum = fma(sum, q, 2.0f / 9.0f);
  sum = fma(sum, q, 2.0f / 7.0f);
  sum = fma(sum, q, 2.0f / 5.0f);
  sum = fma(sum, q, 2.0f / 3.0f);
  const float log_m = fma(sum * q, s, 2.0f * s);
  return fma(float(power), 0.693147181f, log_m + lost);
}

static inline float softplus(float x) { return x > 20.0f ? x : log1p_float(exp_float(x)); }

// The sum over a threadgroup; `partial` has a float per simdgroup. Every thread calls it and gets the sum.
static inline float threadgroup_sum(float value, threadgroup float *partial, uint lane, uint simdgroup,
                                    uint simdgroups) {
  const float of_simdgroup = simd_sum(value);
  if (lane == 0) partial[simdgroup] = of_simdgroup;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float sum = simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next call writes `partial`
  return sum;
}

}  // namespace gpu
}  // namespace moestream
