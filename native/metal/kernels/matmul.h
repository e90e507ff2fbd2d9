// The body of the matrix-matrix kernels: tiles of weights and inputs, multiplied in simdgroup matrices of floats.
#pragma once

#include <metal_stdlib>

#include "tiles.h"

namespace moestream {
namespace gpu {

using namespace metal;

// Sums over every fourth eight of columns, added at the end: one float sum over 4096 columns would be off by 2e-6.
constant constexpr uint kChains = kSliceCols / 8;

// The product of one threadgroup; all of its threads call this.
template <class F, class Arrays>
static inline void multiply_tiles(Arrays weights, TileRows given, constant MatmulArguments &arguments, uint3 group,
                                  uint thread_index, uint simdgroup, threadgroup const uint *book,
                                  threadgroup float *weight_tile, threadgroup float *input_tile) {
  const uint first_row = group.x * kMatmulRows;
  const uint first_input = group.y * kMatmulInputs;
  // A simdgroup has a quarter of the output tile: 16 inputs by 16 weight rows.
  const uint my_input = simdgroup / 2 * 16;
  const uint my_row = simdgroup % 2 * 16;
  simdgroup_float8x8 sums[kChains][4];
#pragma unroll
  for (uint chain = 0; chain < kChains; ++chain) {
#pragma unroll
    for (uint i = 0; i < 4; ++i) sums[chain][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  for (uint col = 0; col < arguments.cols; col += kTileCols) {
    unpack_tile<F>(weights, arguments, first_row, col, book, weight_tile, thread_index);
    for (uint slice = 0; slice < kTileCols && col + slice < arguments.cols; slice += kSliceCols) {
      gather_tile(given.x, arguments, given.from, first_input, col + slice, input_tile, thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (uint chain = 0; chain < kChains; ++chain) {
        const uint k = 8 * chain;
        simdgroup_float8x8 inputs[2];
        simdgroup_float8x8 rows[2];
#pragma unroll
        for (uint i = 0; i < 2; ++i) {
          simdgroup_load(inputs[i], input_tile + (my_input + 8 * i) * kSliceCols + k, kSliceCols);
          simdgroup_load(rows[i], weight_tile + (my_row + 8 * i) * kTileCols + slice + k, kTileCols, ulong2(0), true);
        }
#pragma unroll
        for (uint i = 0; i < 4; ++i) {
          simdgroup_multiply_accumulate(sums[chain][i], inputs[i / 2], rows[i % 2], sums[chain][i]);
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  // Through threadgroup memory, where the chains are added, to the rows that `to` names; the weights are done with.
  threadgroup float *out_tile = weight_tile;
#pragma unroll
  for (uint chain = 0; chain < kChains; ++chain) {
    threadgroup float *into = out_tile + chain * kMatmulInputs * kMatmulRows;
#pragma unroll
    for (uint i = 0; i < 4; ++i) {
      simdgroup_store(sums[chain][i], into + (my_input + 8 * (i / 2)) * kMatmulRows + my_row + 8 * (i % 2), kMatmulRows);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < kMatmulInputs * kMatmulRows; i += kMatmulThreads) {
    const uint input = first_input + i / kMatmulRows;
    const uint row = first_row + i % kMatmulRows;
    if (input >= arguments.inputs || row >= arguments.rows) continue;
    const uint to_row = arguments.mapped != 0 ? given.to[input] : input;
    float sum = 0.0f;
#pragma unroll
    for (uint chain = 0; chain < kChains; ++chain) sum += out_tile[chain * kMatmulInputs * kMatmulRows + i];
    given.y[ulong(to_row) * arguments.rows + row] = sum;
  }
}

}  // namespace gpu
}  // namespace moestream
