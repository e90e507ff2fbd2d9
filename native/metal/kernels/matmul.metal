// Products with many input rows: a threadgroup unpacks a tile of weights once and multiplies it with 32 inputs, in
// simdgroup matrices of floats.
#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "tiles.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

// Sums over every fourth eight of columns, added at the end: one float sum over 4096 columns would be off by 2e-6.
constant constexpr uint kChains = kSliceCols / 8;

template <class F>
kernel void matmul(device const uchar *weights [[buffer(0)]], device const float *x [[buffer(1)]],  // (rows, cols)
                   device float *y [[buffer(2)]],  // (output rows, rows)
                   constant MatmulArguments &arguments [[buffer(3)]], device const uint *from [[buffer(4)]],
                   device const uint *to [[buffer(5)]], uint3 group [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  threadgroup float weight_tile[kMatmulRows * kTileCols];
  threadgroup float input_tile[kMatmulInputs * kSliceCols];
  fill_book<F>(book, thread_index, kMatmulThreads);

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
      gather_tile(x, arguments, from, first_input, col + slice, input_tile, thread_index);
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
    const uint to_row = arguments.mapped != 0 ? to[input] : input;
    float sum = 0.0f;
#pragma unroll
    for (uint chain = 0; chain < kChains; ++chain) sum += out_tile[chain * kMatmulInputs * kMatmulRows + i];
    y[ulong(to_row) * arguments.rows + row] = sum;
  }
}

typedef decltype(matmul<F32>) matmul_entry;
template [[host_name("matmul_f32")]] kernel matmul_entry matmul<F32>;
template [[host_name("matmul_f16")]] kernel matmul_entry matmul<F16>;
template [[host_name("matmul_bf16")]] kernel matmul_entry matmul<BF16>;
template [[host_name("matmul_q8_0")]] kernel matmul_entry matmul<Q8_0>;
template [[host_name("matmul_q4_0")]] kernel matmul_entry matmul<Q4_0>;
template [[host_name("matmul_q4_1")]] kernel matmul_entry matmul<Q4_1>;
template [[host_name("matmul_q5_0")]] kernel matmul_entry matmul<Q5_0>;
template [[host_name("matmul_q5_1")]] kernel matmul_entry matmul<Q5_1>;
template [[host_name("matmul_iq4_nl")]] kernel matmul_entry matmul<IQ4_NL>;
template [[host_name("matmul_mxfp4")]] kernel matmul_entry matmul<MXFP4>;
template [[host_name("matmul_q2_k")]] kernel matmul_entry matmul<Q2_K>;
template [[host_name("matmul_q3_k")]] kernel matmul_entry matmul<Q3_K>;
template [[host_name("matmul_q4_k")]] kernel matmul_entry matmul<Q4_K>;
template [[host_name("matmul_q5_k")]] kernel matmul_entry matmul<Q5_K>;
template [[host_name("matmul_q6_k")]] kernel matmul_entry matmul<Q6_K>;
template [[host_name("matmul_iq2_xxs")]] kernel matmul_entry matmul<IQ2_XXS>;
template [[host_name("matmul_iq2_xs")]] kernel matmul_entry matmul<IQ2_XS>;
template [[host_name("matmul_iq2_s")]] kernel matmul_entry matmul<IQ2_S>;
template [[host_name("matmul_iq3_xxs")]] kernel matmul_entry matmul<IQ3_XXS>;
template [[host_name("matmul_iq3_s")]] kernel matmul_entry matmul<IQ3_S>;
template [[host_name("matmul_iq4_xs")]] kernel matmul_entry matmul<IQ4_XS>;
