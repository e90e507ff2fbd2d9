// Products with many input rows on the tensor units of Metal 4: the tiles, buffers and grid of matmul.metal, multiplied by
// the four simdgroups of a threadgroup together.
//
// A library of its own, compiled with language version 4.0 and left out where that fails. Operands stay float32, so
// results are as near the CPU's as those of matmul.metal. On Linux it runs on a stand-in for Metal's tensor operations
// whose meaning was inferred from public use: only a Mac can show that it compiles and is worth having.
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

#include "affine.h"
#include "arguments.h"
#include "formats.h"
#include "tiles.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

// Inputs times the rows of weights: the right operand is transposed, sums are added to.
constant constexpr auto kTileProduct =
    mpp::tensor_ops::matmul2d_descriptor(kMatmulInputs, kMatmulRows, kSliceCols, false, true, false,
                                         mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);

// The product of one threadgroup; all of its threads call this.
template <class F, class Arrays>
static inline void multiply_tensors(Arrays weights, TileRows given, constant MatmulArguments &arguments, uint3 group,
                                    uint thread_index, threadgroup const uint *book, threadgroup float *weight_tile,
                                    threadgroup float *input_tile) {
  // Extents and strides are those of the columns first.
  using Tile = tensor<threadgroup float, dextents<int, 2>, tensor_inline>;
  Tile inputs(input_tile, dextents<int, 2>(kSliceCols, kMatmulInputs));
  mpp::tensor_ops::matmul2d<kTileProduct, execution_simdgroups<kMatmulThreads / kSimdWidth>> product;
  auto sums = product.template get_destination_cooperative_tensor<Tile, Tile, float>();
  for (ushort i = 0; i < sums.get_capacity(); ++i) {
    if (sums.is_valid_element(i)) sums[i] = 0.0f;
  }

  const uint first_row = group.x * kMatmulRows;
  const uint first_input = group.y * kMatmulInputs;
  for (uint col = 0; col < arguments.cols; col += kTileCols) {
    unpack_tile<F>(weights, arguments, first_row, col, book, weight_tile, thread_index);
    for (uint slice = 0; slice < kTileCols && col + slice < arguments.cols; slice += kSliceCols) {
      gather_tile(given.x, arguments, given.from, first_input, col + slice, input_tile, thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      Tile rows(weight_tile + slice, dextents<int, 2>(kSliceCols, kMatmulRows), array<int, 2>{1, int(kTileCols)});
      product.run(inputs, rows, sums);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  // Through threadgroup memory to the rows that `to` names; the weights are done with.
  threadgroup float *out_tile = weight_tile;
  Tile out(out_tile, dextents<int, 2>(kMatmulRows, kMatmulInputs));
  sums.store(out);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < kMatmulInputs * kMatmulRows; i += kMatmulThreads) {
    const uint input = first_input + i / kMatmulRows;
    const uint row = first_row + i % kMatmulRows;
    if (input >= arguments.inputs || row >= arguments.rows) continue;
    const uint to_row = arguments.mapped != 0 ? given.to[input] : input;
    given.y[ulong(to_row) * arguments.rows + row] = out_tile[i];
  }
}

template <class F>
kernel void tensor_matmul(device const uchar *weights [[buffer(0)]],
                          device const float *x [[buffer(1)]],  // (rows, cols)
                          device float *y [[buffer(2)]],        // (output rows, rows)
                          constant MatmulArguments &arguments [[buffer(3)]], device const uint *from [[buffer(4)]],
                          device const uint *to [[buffer(5)]], uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  threadgroup float weight_tile[kMatmulRows * kTileCols];
  threadgroup float input_tile[kMatmulInputs * kSliceCols];
  fill_book<F>(book, thread_index, kMatmulThreads);
  multiply_tensors<F>(blocks_at(weights), tile_rows(x, y, from, to), arguments, group, thread_index, book, weight_tile,
                      input_tile);
}

template <class F>
kernel void tensor_affine(device const uchar *codes [[buffer(0)]], device const float *x [[buffer(1)]],
                          device float *y [[buffer(2)]], constant MatmulArguments &arguments [[buffer(3)]],
                          device const uint *from [[buffer(4)]], device const uint *to [[buffer(5)]],
                          device const uchar *scales [[buffer(6)]], device const uchar *biases [[buffer(7)]],
                          constant AffineArguments &affine [[buffer(8)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  threadgroup float weight_tile[kMatmulRows * kTileCols];
  threadgroup float input_tile[kMatmulInputs * kSliceCols];
  multiply_tensors<F>(affine_arrays(codes, scales, biases, affine, 0), tile_rows(x, y, from, to), arguments, group,
                      thread_index, book, weight_tile, input_tile);
}

typedef decltype(tensor_matmul<F32>) tensor_matmul_entry;
template [[host_name("tensor_matmul_f32")]] kernel tensor_matmul_entry tensor_matmul<F32>;
template [[host_name("tensor_matmul_f16")]] kernel tensor_matmul_entry tensor_matmul<F16>;
template [[host_name("tensor_matmul_bf16")]] kernel tensor_matmul_entry tensor_matmul<BF16>;
template [[host_name("tensor_matmul_q8_0")]] kernel tensor_matmul_entry tensor_matmul<Q8_0>;
template [[host_name("tensor_matmul_q4_0")]] kernel tensor_matmul_entry tensor_matmul<Q4_0>;
template [[host_name("tensor_matmul_q4_1")]] kernel tensor_matmul_entry tensor_matmul<Q4_1>;
template [[host_name("tensor_matmul_q5_0")]] kernel tensor_matmul_entry tensor_matmul<Q5_0>;
template [[host_name("tensor_matmul_q5_1")]] kernel tensor_matmul_entry tensor_matmul<Q5_1>;
template [[host_name("tensor_matmul_iq4_nl")]] kernel tensor_matmul_entry tensor_matmul<IQ4_NL>;
template [[host_name("tensor_matmul_mxfp4")]] kernel tensor_matmul_entry tensor_matmul<MXFP4>;
template [[host_name("tensor_matmul_q2_k")]] kernel tensor_matmul_entry tensor_matmul<Q2_K>;
template [[host_name("tensor_matmul_q3_k")]] kernel tensor_matmul_entry tensor_matmul<Q3_K>;
template [[host_name("tensor_matmul_q4_k")]] kernel tensor_matmul_entry tensor_matmul<Q4_K>;
template [[host_name("tensor_matmul_q5_k")]] kernel tensor_matmul_entry tensor_matmul<Q5_K>;
template [[host_name("tensor_matmul_q6_k")]] kernel tensor_matmul_entry tensor_matmul<Q6_K>;
template [[host_name("tensor_matmul_iq2_xxs")]] kernel tensor_matmul_entry tensor_matmul<IQ2_XXS>;
template [[host_name("tensor_matmul_iq2_xs")]] kernel tensor_matmul_entry tensor_matmul<IQ2_XS>;
template [[host_name("tensor_matmul_iq2_s")]] kernel tensor_matmul_entry tensor_matmul<IQ2_S>;
template [[host_name("tensor_matmul_iq3_xxs")]] kernel tensor_matmul_entry tensor_matmul<IQ3_XXS>;
template [[host_name("tensor_matmul_iq3_s")]] kernel tensor_matmul_entry tensor_matmul<IQ3_S>;
template [[host_name("tensor_matmul_iq4_xs")]] kernel tensor_matmul_entry tensor_matmul<IQ4_XS>;

typedef decltype(tensor_affine<Affine<4>>) tensor_affine_entry;
template [[host_name("tensor_matmul_affine2")]] kernel tensor_affine_entry tensor_affine<Affine<2>>;
template [[host_name("tensor_matmul_affine3")]] kernel tensor_affine_entry tensor_affine<Affine<3>>;
template [[host_name("tensor_matmul_affine4")]] kernel tensor_affine_entry tensor_affine<Affine<4>>;
template [[host_name("tensor_matmul_affine5")]] kernel tensor_affine_entry tensor_affine<Affine<5>>;
template [[host_name("tensor_matmul_affine6")]] kernel tensor_affine_entry tensor_affine<Affine<6>>;
template [[host_name("tensor_matmul_affine8")]] kernel tensor_affine_entry tensor_affine<Affine<8>>;
