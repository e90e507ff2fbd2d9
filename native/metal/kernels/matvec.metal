// Matrix-vector products with quantised weights, two weight rows per simdgroup, and the fused gate, up and SwiGLU.
//
// A segment is one matrix: up to four of one type go in one dispatch, so the query, key and value projections (or qkv,
// z, beta and alpha) read their input while it is in the cache.
#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "products.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

template <class F>
kernel void matvec(device const uchar *weights0 [[buffer(0)]], device const uchar *weights1 [[buffer(1)]],
                   device const uchar *weights2 [[buffer(2)]], device const uchar *weights3 [[buffer(3)]],
                   device const float *x [[buffer(4)]],  // (input rows, cols)
                   device float *y0 [[buffer(5)]], device float *y1 [[buffer(6)]], device float *y2 [[buffer(7)]],
                   device float *y3 [[buffer(8)]], constant MatvecArguments &arguments [[buffer(9)]],
                   device const uint *from [[buffer(10)]], device const uint *to [[buffer(11)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  fill_book<F>(book, thread_index, kMatvecThreads);

  const uint segment = segment_of(arguments, group.x);
  device const uchar *weights = segment == 0 ? weights0 : segment == 1 ? weights1 : segment == 2 ? weights2 : weights3;
  device float *y = segment == 0 ? y0 : segment == 1 ? y1 : segment == 2 ? y2 : y3;
  const uint rows = arguments.rows[segment];
  const uint first = (group.x - arguments.first_group[segment]) * kMatvecRows + 2 * simdgroup;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  store_two_rows<F>(blocks_at(weights), rows, first, x + ulong(from_row) * arguments.cols, arguments.cols,
                              lane, book, y + ulong(to_row) * rows);
}

template <class F>
kernel void gated(device const uchar *gate [[buffer(0)]], device const uchar *up [[buffer(1)]],
                  device const float *x [[buffer(2)]],  // (input rows, cols)
                  device float *y [[buffer(3)]],        // (output rows, rows)
                  constant GatedArguments &arguments [[buffer(4)]], device const uint *from [[buffer(5)]],
                  device const uint *to [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                  uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  fill_book<F>(book, thread_index, kMatvecThreads);

  const uint row = group.x * kGatedRows + simdgroup;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  store_gated<F>(blocks_at(gate), blocks_at(up), arguments.rows, row,
                           x + ulong(from_row) * arguments.cols, arguments.cols, lane, book,
                           y + ulong(to_row) * arguments.rows);
}

typedef decltype(matvec<F32>) matvec_entry;
template [[host_name("matvec_f32")]] kernel matvec_entry matvec<F32>;
template [[host_name("matvec_f16")]] kernel matvec_entry matvec<F16>;
template [[host_name("matvec_bf16")]] kernel matvec_entry matvec<BF16>;
template [[host_name("matvec_q8_0")]] kernel matvec_entry matvec<Q8_0>;
template [[host_name("matvec_q4_0")]] kernel matvec_entry matvec<Q4_0>;
template [[host_name("matvec_q4_1")]] kernel matvec_entry matvec<Q4_1>;
template [[host_name("matvec_q5_0")]] kernel matvec_entry matvec<Q5_0>;
template [[host_name("matvec_q5_1")]] kernel matvec_entry matvec<Q5_1>;
template [[host_name("matvec_iq4_nl")]] kernel matvec_entry matvec<IQ4_NL>;
template [[host_name("matvec_mxfp4")]] kernel matvec_entry matvec<MXFP4>;
template [[host_name("matvec_q2_k")]] kernel matvec_entry matvec<Q2_K>;
template [[host_name("matvec_q3_k")]] kernel matvec_entry matvec<Q3_K>;
template [[host_name("matvec_q4_k")]] kernel matvec_entry matvec<Q4_K>;
template [[host_name("matvec_q5_k")]] kernel matvec_entry matvec<Q5_K>;
template [[host_name("matvec_q6_k")]] kernel matvec_entry matvec<Q6_K>;
template [[host_name("matvec_iq2_xxs")]] kernel matvec_entry matvec<IQ2_XXS>;
template [[host_name("matvec_iq2_xs")]] kernel matvec_entry matvec<IQ2_XS>;
template [[host_name("matvec_iq2_s")]] kernel matvec_entry matvec<IQ2_S>;
template [[host_name("matvec_iq3_xxs")]] kernel matvec_entry matvec<IQ3_XXS>;
template [[host_name("matvec_iq3_s")]] kernel matvec_entry matvec<IQ3_S>;
template [[host_name("matvec_iq4_xs")]] kernel matvec_entry matvec<IQ4_XS>;

typedef decltype(gated<F32>) gated_entry;
template [[host_name("gated_f32")]] kernel gated_entry gated<F32>;
template [[host_name("gated_f16")]] kernel gated_entry gated<F16>;
template [[host_name("gated_bf16")]] kernel gated_entry gated<BF16>;
template [[host_name("gated_q8_0")]] kernel gated_entry gated<Q8_0>;
template [[host_name("gated_q4_0")]] kernel gated_entry gated<Q4_0>;
template [[host_name("gated_q4_1")]] kernel gated_entry gated<Q4_1>;
template [[host_name("gated_q5_0")]] kernel gated_entry gated<Q5_0>;
template [[host_name("gated_q5_1")]] kernel gated_entry gated<Q5_1>;
template [[host_name("gated_iq4_nl")]] kernel gated_entry gated<IQ4_NL>;
template [[host_name("gated_mxfp4")]] kernel gated_entry gated<MXFP4>;
template [[host_name("gated_q2_k")]] kernel gated_entry gated<Q2_K>;
template [[host_name("gated_q3_k")]] kernel gated_entry gated<Q3_K>;
template [[host_name("gated_q4_k")]] kernel gated_entry gated<Q4_K>;
template [[host_name("gated_q5_k")]] kernel gated_entry gated<Q5_K>;
template [[host_name("gated_q6_k")]] kernel gated_entry gated<Q6_K>;
template [[host_name("gated_iq2_xxs")]] kernel gated_entry gated<IQ2_XXS>;
template [[host_name("gated_iq2_xs")]] kernel gated_entry gated<IQ2_XS>;
template [[host_name("gated_iq2_s")]] kernel gated_entry gated<IQ2_S>;
template [[host_name("gated_iq3_xxs")]] kernel gated_entry gated<IQ3_XXS>;
template [[host_name("gated_iq3_s")]] kernel gated_entry gated<IQ3_S>;
template [[host_name("gated_iq4_xs")]] kernel gated_entry gated<IQ4_XS>;
