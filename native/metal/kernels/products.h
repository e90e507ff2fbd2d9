// Dot products of weight rows with one input row, by one simdgroup: what matvec.metal and its fused forms share.
#pragma once

#include <metal_stdlib>

#include "formats.h"
#include "functions.h"

namespace moestream {
namespace gpu {

// The weight rows that one simdgroup takes together: they share what is loaded of the input.
template <uint kRows>
struct WeightRows {
  device const uchar *at[kRows];
};

static inline float sum_of(float4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

// Lanes whose parts follow each other read one run of the input 64 bytes apart, so that all meet in the same few banks of
// the cache: that, not memory, bounded Q8_0, MXFP4 and the IQ4 types on an H200. Formats that gain by it (docs/kernels.md)
// let lanes read their four runs in four different orders and put them back in place in registers: the same bits.
template <class F>
struct TurnedRuns {
  enum : uint { kUsed = 0 };
};
template <>
struct TurnedRuns<Q8_0> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<Q4_0> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<Q4_1> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<IQ4_NL> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<MXFP4> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<IQ4_XS> {
  enum : uint { kUsed = 1 };
};

static inline void swap_if(bool wanted, thread float4 &a, thread float4 &b) {
  const float4 first = a;
  const float4 second = b;
  a = wanted ? second : first;
  b = wanted ? first : second;
}

// A part's four runs of the input, read in the order that belongs to its index.
template <class F>
static inline void load_turned(device const float *from, uint part, uint index, thread float4 *inputs) {
  const uint turn = index / 2 % 4;
#pragma unroll
  for (uint run = 0; run < 4; ++run) inputs[run] = *(device const float4 *)(from + F::column(part, run ^ turn));
  swap_if((turn & 1) != 0, inputs[0], inputs[1]);
  swap_if((turn & 1) != 0, inputs[2], inputs[3]);
  swap_if((turn & 2) != 0, inputs[0], inputs[2]);
  swap_if((turn & 2) != 0, inputs[1], inputs[3]);
}

// Adds the products of one part of every row to `sums`.
template <class F, uint kRows>
static inline void add_part(thread const WeightRows<kRows> &rows, uint index, device const float *x,
                            threadgroup const uint *book, thread float *sums) {
  const uint parts = uint(F::kBlockValues) / uint(F::kPart);
  const uint runs = uint(F::kPart) / 4;
  const uint runs_per_scale = runs / uint(F::kScales);
  const uint block = index / parts;
  const uint part = index % parts;
  device const float *from = x + block * uint(F::kBlockValues);
  float4 inputs[runs];
  if (TurnedRuns<F>::kUsed != 0) {
    load_turned<F>(from, part, index, inputs);
  } else {
#pragma unroll
    for (uint run = 0; run < runs; ++run) inputs[run] = *(device const float4 *)(from + F::column(part, run));
  }
  float input_sums[F::kScales];
  if (F::kHasMinimum != 0) {
#pragma unroll
    for (uint s = 0; s < uint(F::kScales); ++s) {
      float4 four = inputs[s * runs_per_scale];
#pragma unroll
      for (uint i = 1; i < runs_per_scale; ++i) four += inputs[s * runs_per_scale + i];
      input_sums[s] = sum_of(four);
    }
  }
#pragma unroll
  for (uint row = 0; row < kRows; ++row) {
    Part<F> weights;
    F::unpack(rows.at[row] + ulong(block) * uint(F::kBlockBytes), part, book, weights);
#pragma unroll
    for (uint s = 0; s < uint(F::kScales); ++s) {
      float4 four = weights.codes[s * runs_per_scale] * inputs[s * runs_per_scale];
#pragma unroll
      for (uint i = 1; i < runs_per_scale; ++i) {
        four = fma(weights.codes[s * runs_per_scale + i], inputs[s * runs_per_scale + i], four);
      }
      sums[row] = fma(weights.scales[s], sum_of(four), sums[row]);
      if (F::kHasMinimum != 0) sums[row] = fma(-weights.minimums[s], input_sums[s], sums[row]);
    }
  }
}

// sums[row] = row . x, in every lane.
template <class F, uint kRows>
static inline void dot_rows(thread const WeightRows<kRows> &rows, device const float *x, uint cols, uint lane,
                            threadgroup const uint *book, thread float *sums) {
#pragma unroll
  for (uint row = 0; row < kRows; ++row) sums[row] = 0.0f;
  const uint count = cols / uint(F::kPart);
  for (uint index = lane; index < count; index += 32) add_part<F, kRows>(rows, index, x, book, sums);
#pragma unroll
  for (uint row = 0; row < kRows; ++row) sums[row] = simd_sum(sums[row]);
}

template <class F>
static inline ulong row_bytes(uint cols) {
  return ulong(cols / uint(F::kBlockValues)) * uint(F::kBlockBytes);
}

}  // namespace gpu
}  // namespace moestream
