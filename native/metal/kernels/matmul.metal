// Products with many input rows: a threadgroup unpacks a tile of weights once and multiplies it with 32 inputs, in
// simdgroup matrices of floats.
#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "matmul.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

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
  multiply_tiles<F>(blocks_at(weights), tile_rows(x, y, from, to), arguments, group, thread_index, simdgroup, book,
                    weight_tile, input_tile);
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
