// Dot products of weight rows with one input row, by one simdgroup, and rows as floats: what the kernels of blocks and of
// affine formats share.
#pragma once

#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "functions.h"

namespace moestream {
namespace gpu {

// The blocks of a matrix, or of what begins with one of its rows. What is templated over a format takes this or the
// arrays of formats whose parts lie apart (affine.h), through `row_of` and `unpack_part`.
struct Blocks {
  device const uchar *at;
};

template <class F>
static inline ulong row_bytes(uint cols) {
  return ulong(cols / uint(F::kBlockValues)) * uint(F::kBlockBytes);
}

static inline Blocks blocks_at(device const uchar *at) {
  Blocks blocks;
  blocks.at = at;
  return blocks;
}

template <class F>
static inline Blocks row_of(Blocks matrix, uint row, uint cols) {
  return blocks_at(matrix.at + row * row_bytes<F>(cols));
}

template <class F>
static inline void unpack_part(Blocks row, uint block, uint part, threadgroup const uint *book, thread Part<F> &out) {
  F::unpack(row.at + ulong(block) * uint(F::kBlockBytes), part, book, out);
}

// The weight rows that one simdgroup takes together: they share what is loaded of the input.
template <class Arrays, uint kRows>
struct WeightRows {
  Arrays at[kRows];
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
template <class F, class Arrays, uint kRows>
static inline void add_part(thread const WeightRows<Arrays, kRows> &rows, uint index, device const float *x,
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
    unpack_part<F>(rows.at[row], block, part, book, weights);
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
template <class F, class Arrays, uint kRows>
static inline void dot_rows(thread const WeightRows<Arrays, kRows> &rows, device const float *x, uint cols, uint lane,
                            threadgroup const uint *book, thread float *sums) {
#pragma unroll
  for (uint row = 0; row < kRows; ++row) sums[row] = 0.0f;
  const uint count = cols / uint(F::kPart);
  for (uint index = lane; index < count; index += 32) add_part<F>(rows, index, x, book, sums);
#pragma unroll
  for (uint row = 0; row < kRows; ++row) sums[row] = simd_sum(sums[row]);
}

// y[row] = weights[row] . x for rows `first` and the one behind it. Rows beyond the last are computed as it is and not
// stored, so every lane reaches every simd_sum.
template <class F, class Arrays>
static inline void store_two_rows(Arrays weights, uint rows, uint first, device const float *x, uint cols, uint lane,
                                  threadgroup const uint *book, device float *y) {
  WeightRows<Arrays, 2> pair;
#pragma unroll
  for (uint i = 0; i < 2; ++i) pair.at[i] = row_of<F>(weights, min(first + i, rows - 1), cols);
  float sums[2];
  dot_rows<F>(pair, x, cols, lane, book, sums);
#pragma unroll
  for (uint i = 0; i < 2; ++i) {
    if (lane == i && first + i < rows) y[first + i] = sums[i];
  }
}

// The segment of a dispatch that a threadgroup computes.
static inline uint segment_of(constant MatvecArguments &arguments, uint group) {
  uint segment = 0;
  while (segment + 1 < arguments.segments && group >= arguments.first_group[segment + 1]) ++segment;
  return segment;
}

// y = silu(gate[row] . x) * (up[row] . x)
template <class F, class Arrays>
static inline void store_gated(Arrays gate, Arrays up, uint rows, uint row, device const float *x, uint cols, uint lane,
                               threadgroup const uint *book, device float *y) {
  WeightRows<Arrays, 2> both;
  both.at[0] = row_of<F>(gate, min(row, rows - 1), cols);
  both.at[1] = row_of<F>(up, min(row, rows - 1), cols);
  float sums[2];
  dot_rows<F>(both, x, cols, lane, book, sums);
  if (lane == 0 && row < rows) y[row] = silu(sums[0]) * sums[1];
}

// A row as floats, by all threads of a threadgroup.
template <class F, class Arrays>
static inline void store_values(Arrays row, uint cols, threadgroup const uint *book, device float *out, uint thread_index) {
  const uint parts = uint(F::kBlockValues) / uint(F::kPart);
  const uint runs_per_scale = uint(F::kPart) / 4 / uint(F::kScales);
  for (uint index = thread_index; index < cols / uint(F::kPart); index += kMatvecThreads) {
    const uint block = index / parts;
    const uint part = index % parts;
    Part<F> weights;
    unpack_part<F>(row, block, part, book, weights);
#pragma unroll
    for (uint run = 0; run < uint(F::kPart) / 4; ++run) {
      float4 values = weights.codes[run] * weights.scales[run / runs_per_scale];
      if (F::kHasMinimum != 0) values = values - weights.minimums[run / runs_per_scale];
      *(device float4 *)(out + block * uint(F::kBlockValues) + F::column(part, run)) = values;
    }
  }
}

}  // namespace gpu
}  // namespace moestream
