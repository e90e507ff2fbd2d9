// The router: scores, softmax and the choice of experts, with the bits that the CPU gives for the same input.
//
// An expert that is chosen or not by the last bit of a sum would make two backends read different experts. So the scores
// are summed as the CPU sums them (32 lanes, multiply then add, halves of lanes added), exponentials are computed to 45
// bits and rounded once, and the softmax adds them one by one: 512 additions, about a microsecond.
#include <metal_stdlib>

#include "arguments.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

static inline float widened(float x) { return x; }
static inline float widened(half x) { return float(x); }
// bfloat16: the high half of a float.
static inline float widened(ushort x) { return as_type<float>(uint(x) << 16); }

template <class Weight>
kernel void router_scores(device const Weight *weights [[buffer(0)]],  // (experts, cols)
                          device const float *x [[buffer(1)]],         // (rows, cols)
                          device float *scores [[buffer(2)]],          // (rows, experts)
                          constant RouterArguments &arguments [[buffer(3)]],
                          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint expert = group.x * kRouterExperts + simdgroup;
  const uint row = min(expert, arguments.experts - 1);
  device const Weight *from = weights + ulong(row) * arguments.cols;
  device const float *input = x + ulong(group.y) * arguments.cols;
  float sum = 0.0f;
  for (uint i = lane; i < arguments.cols; i += kSimdWidth) sum += widened(from[i]) * input[i];
  // Addition is commutative, so every lane of this exchange ends with the bits of the CPU's tree.
  for (ushort distance = 16; distance > 0; distance /= 2) sum += simd_shuffle_xor(sum, distance);
  if (lane == 0 && expert < arguments.experts) scores[group.y * arguments.experts + expert] = sum;
}

typedef decltype(router_scores<float>) router_scores_f32_entry;
typedef decltype(router_scores<half>) router_scores_f16_entry;
typedef decltype(router_scores<ushort>) router_scores_bf16_entry;
template [[host_name("router_scores_f32")]] kernel router_scores_f32_entry router_scores<float>;
template [[host_name("router_scores_f16")]] kernel router_scores_f16_entry router_scores<half>;
template [[host_name("router_scores_bf16")]] kernel router_scores_bf16_entry router_scores<ushort>;

// A number as the sum of two floats, the second below half a unit of the first: 48 bits where there is no double.
struct Sum {
  float high;
  float low;
};

static inline Sum exact_sum(float a, float b) {
  Sum sum;
  sum.high = a + b;
  const float other = sum.high - a;
  sum.low = (a - (sum.high - other)) + (b - other);
  return sum;
}

static inline Sum exact_product(float a, float b) {
  Sum product;
  product.high = a * b;
  product.low = fma(a, b, -product.high);
  return product;
}

static inline Sum added(Sum a, Sum b) {
  Sum sum = exact_sum(a.high, b.high);
  return exact_sum(sum.high, sum.low + (a.low + b.low));
}

static inline Sum multiplied(Sum a, Sum b) {
  Sum product = exact_product(a.high, b.high);
  return exact_sum(product.high, product.low + fma(a.high, b.low, a.low * b.high));
}

// 1/2!, 1/3! and so on as sums; the first is that of the highest power.
constant constexpr float kHighCoefficients[5] = {0.00138888892f, 0.00833333377f, 0.0416666679f, 0.166666672f, 0.5f};
constant constexpr float kLowCoefficients[5] = {-3.36310944e-11f, -4.34617203e-10f, -1.24176347e-9f, -4.96705388e-9f, 0.0f};

// exp(x) for x <= 0, rounded once: the error before is below 2^-44.
static inline float rounded_exp(float x) {
  const float inside = max(x, -104.0f);
  const float power = rint(inside * 1.44269504f);
  // ln(2) in three parts; the product with the first, of 16 bits, is exact, and so is the difference.
  const Sum second = exact_product(power, 0.00000142860677f);
  Sum r = exact_sum(fma(power, -0.693145751953125f, inside), -second.high);
  r = exact_sum(r.high, r.low - second.low - power * 5.49792315e-14f);
  // Powers from the seventh on are below 2^-22 of the result: floats are enough for them.
  float tail = 1.0f / 3628800.0f;
  tail = fma(tail, r.high, 1.0f / 362880.0f);
  tail = fma(tail, r.high, 1.0f / 40320.0f);
  tail = fma(tail, r.high, 1.0f / 5040.0f);
  Sum sum;
  sum.high = tail;
  sum.low = 0.0f;
  for (uint i = 0; i < 5; ++i) {
    Sum coefficient;
    coefficient.high = kHighCoefficients[i];
    coefficient.low = kLowCoefficients[i];
    sum = added(coefficient, multiplied(sum, r));
  }
  Sum one;
  one.high = 1.0f;
  one.low = 0.0f;
  sum = added(one, multiplied(sum, r));
  sum = added(one, multiplied(sum, r));
  const int first = int(power) / 2;
  const int rest = int(power) - first;
  const float result = sum.high * as_type<float>(uint(first + 127) << 23) * as_type<float>(uint(rest + 127) << 23);
  return x != x ? x : result;
}

// One simdgroup per row; lane l has the experts l, l + 32, and so on.
kernel void router_choose(device const float *scores [[buffer(0)]],  // (rows, experts)
                          device int *ids [[buffer(1)]],             // (rows, choices)
                          device float *weights [[buffer(2)]],       // (rows, choices)
                          constant RouterArguments &arguments [[buffer(3)]],
                          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float probabilities[kMaxExperts];
  threadgroup float chosen[kMaxChoices];
  const uint experts = arguments.experts;
  device const float *row = scores + ulong(group.x) * experts;
  float maximum = -INFINITY;
  for (uint e = lane; e < experts; e += kSimdWidth) maximum = row[e] > maximum ? row[e] : maximum;
  maximum = simd_max(maximum);
  for (uint e = lane; e < experts; e += kSimdWidth) probabilities[e] = rounded_exp(row[e] - maximum);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0.0f;
  for (uint e = 0; e < experts; ++e) sum += probabilities[e];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint e = lane; e < experts; e += kSimdWidth) probabilities[e] = probabilities[e] / sum;

  // The largest, and of equal ones the first; -1 is below any probability.
  float chosen_sum = 0.0f;
  for (uint k = 0; k < arguments.choices; ++k) {
    float best = -2.0f;
    uint best_expert = 0;
    for (uint e = lane; e < experts; e += kSimdWidth) {
      const bool better = probabilities[e] > best;
      best_expert = better ? e : best_expert;
      best = better ? probabilities[e] : best;
    }
    const float largest = simd_max(best);
    const uint expert = min(simd_min(best == largest ? best_expert : experts), experts - 1);
    if (lane == expert % kSimdWidth) probabilities[expert] = -1.0f;
    if (lane == 0) {
      chosen[k] = largest;
      ids[group.x * arguments.choices + k] = int(expert);
    }
    chosen_sum += largest;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = lane; k < arguments.choices; k += kSimdWidth) {
    // A score that is no number makes the sum none: the host finds it in the weights.
    weights[group.x * arguments.choices + k] = sum == sum ? chosen[k] / chosen_sum : sum;
  }
}
