// The products, the embedding and the router's scores of MLX's affine formats, whose three arrays lie apart: the kernels of
// matvec.metal, matmul.metal, embed.metal and router.metal with more buffers.
#include <metal_stdlib>

#include "affine.h"
#include "arguments.h"
#include "formats.h"
#include "matmul.h"
#include "products.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

template <class F>
kernel void affine_matvec(device const uchar *codes0 [[buffer(0)]], device const uchar *codes1 [[buffer(1)]],
                          device const uchar *codes2 [[buffer(2)]], device const uchar *codes3 [[buffer(3)]],
                          device const float *x [[buffer(4)]],  // (input rows, cols)
                          device float *y0 [[buffer(5)]], device float *y1 [[buffer(6)]],
                          device float *y2 [[buffer(7)]], device float *y3 [[buffer(8)]],
                          constant MatvecArguments &arguments [[buffer(9)]], device const uint *from [[buffer(10)]],
                          device const uint *to [[buffer(11)]], device const uchar *scales0 [[buffer(12)]],
                          device const uchar *scales1 [[buffer(13)]], device const uchar *scales2 [[buffer(14)]],
                          device const uchar *scales3 [[buffer(15)]], device const uchar *biases0 [[buffer(16)]],
                          device const uchar *biases1 [[buffer(17)]], device const uchar *biases2 [[buffer(18)]],
                          device const uchar *biases3 [[buffer(19)]], constant AffineArguments &affine [[buffer(20)]],
                          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];  // no format here has a table
  const uint s = segment_of(arguments, group.x);
  device const uchar *codes = s == 0 ? codes0 : s == 1 ? codes1 : s == 2 ? codes2 : codes3;
  device const uchar *scales = s == 0 ? scales0 : s == 1 ? scales1 : s == 2 ? scales2 : scales3;
  device const uchar *biases = s == 0 ? biases0 : s == 1 ? biases1 : s == 2 ? biases2 : biases3;
  device float *y = s == 0 ? y0 : s == 1 ? y1 : s == 2 ? y2 : y3;
  const uint rows = arguments.rows[s];
  const uint first = (group.x - arguments.first_group[s]) * kMatvecRows + 2 * simdgroup;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  store_two_rows<F>(affine_arrays(codes, scales, biases, affine, s), rows, first, x + ulong(from_row) * arguments.cols,
                    arguments.cols, lane, book, y + ulong(to_row) * rows);
}

template <class F>
kernel void affine_gated(device const uchar *gate [[buffer(0)]], device const uchar *up [[buffer(1)]],
                         device const float *x [[buffer(2)]],  // (input rows, cols)
                         device float *y [[buffer(3)]],        // (output rows, rows)
                         constant GatedArguments &arguments [[buffer(4)]], device const uint *from [[buffer(5)]],
                         device const uint *to [[buffer(6)]], device const uchar *gate_scales [[buffer(7)]],
                         device const uchar *gate_biases [[buffer(8)]], device const uchar *up_scales [[buffer(9)]],
                         device const uchar *up_biases [[buffer(10)]], constant AffineArguments &affine [[buffer(11)]],
                         uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  const uint row = group.x * kGatedRows + simdgroup;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  store_gated<F>(affine_arrays(gate, gate_scales, gate_biases, affine, 0),
                 affine_arrays(up, up_scales, up_biases, affine, 1), arguments.rows, row,
                 x + ulong(from_row) * arguments.cols, arguments.cols, lane, book, y + ulong(to_row) * arguments.rows);
}

template <class F>
kernel void affine_matmul(device const uchar *codes [[buffer(0)]], device const float *x [[buffer(1)]],  // (rows, cols)
                          device float *y [[buffer(2)]],  // (output rows, rows)
                          constant MatmulArguments &arguments [[buffer(3)]], device const uint *from [[buffer(4)]],
                          device const uint *to [[buffer(5)]], device const uchar *scales [[buffer(6)]],
                          device const uchar *biases [[buffer(7)]], constant AffineArguments &affine [[buffer(8)]],
                          uint3 group [[threadgroup_position_in_grid]],
                          uint thread_index [[thread_index_in_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  threadgroup float weight_tile[kMatmulRows * kTileCols];
  threadgroup float input_tile[kMatmulInputs * kSliceCols];
  multiply_tiles<F>(affine_arrays(codes, scales, biases, affine, 0), tile_rows(x, y, from, to), arguments, group,
                    thread_index, simdgroup, book, weight_tile, input_tile);
}

template <class F>
kernel void affine_embed(device const uchar *codes [[buffer(0)]], device const RowEntry *rows [[buffer(1)]],
                         device float *stream [[buffer(2)]],  // (rows, hidden)
                         constant EmbedArguments &arguments [[buffer(3)]], device const uchar *scales [[buffer(4)]],
                         device const uchar *biases [[buffer(5)]], constant AffineArguments &affine [[buffer(6)]],
                         uint3 group [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]]) {
  threadgroup uint book[F::kBookWords];
  const AffineArrays table = affine_arrays(codes, scales, biases, affine, 0);
  store_values<F>(row_of<F>(table, rows[group.x].token, arguments.hidden), arguments.hidden, book,
                  stream + ulong(group.x) * arguments.hidden, thread_index);
}

// One value, with the CPU's bits: the product is exact, so only the sum rounds.
template <class F>
static inline float affine_value(AffineArrays row, uint col) {
  const uint bit = col * uint(F::kCodeBits);
  device const uchar *at = row.codes + (row.skews & 255u) + bit / 8;
  uint word = uint(at[0]);
  if (bit % 8 + uint(F::kCodeBits) > 8) word |= uint(at[1]) << 8;
  const uint code = (word >> (bit % 8)) & ((1u << uint(F::kCodeBits)) - 1);
  const uint group = col >> row.group_shift;
  return float(code) * affine_scale(row, group) + affine_bias(row, group);
}

// Scores with the bits of the CPU's sums, as in router.metal.
template <class F>
kernel void affine_scores(device const uchar *codes [[buffer(0)]],      // (experts, cols)
                          device const float *x [[buffer(1)]],          // (rows, cols)
                          device float *scores [[buffer(2)]],           // (rows, experts)
                          constant RouterArguments &arguments [[buffer(3)]],
                          device const uchar *scales [[buffer(4)]], device const uchar *biases [[buffer(5)]],
                          constant AffineArguments &affine [[buffer(6)]],
                          uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint expert = group.x * kRouterExperts + simdgroup;
  const AffineArrays matrix = affine_arrays(codes, scales, biases, affine, 0);
  const AffineArrays row = row_of<F>(matrix, min(expert, arguments.experts - 1), arguments.cols);
  device const float *input = x + ulong(group.y) * arguments.cols;
  float sum = 0.0f;
  for (uint i = lane; i < arguments.cols; i += kSimdWidth) sum += affine_value<F>(row, i) * input[i];
  for (ushort distance = 16; distance > 0; distance /= 2) sum += simd_shuffle_xor(sum, distance);
  if (lane == 0 && expert < arguments.experts) scores[group.y * arguments.experts + expert] = sum;
}

typedef decltype(affine_matvec<Affine<4>>) affine_matvec_entry;
template [[host_name("matvec_affine2")]] kernel affine_matvec_entry affine_matvec<Affine<2>>;
template [[host_name("matvec_affine3")]] kernel affine_matvec_entry affine_matvec<Affine<3>>;
template [[host_name("matvec_affine4")]] kernel affine_matvec_entry affine_matvec<Affine<4>>;
template [[host_name("matvec_affine5")]] kernel affine_matvec_entry affine_matvec<Affine<5>>;
template [[host_name("matvec_affine6")]] kernel affine_matvec_entry affine_matvec<Affine<6>>;
template [[host_name("matvec_affine8")]] kernel affine_matvec_entry affine_matvec<Affine<8>>;

typedef decltype(affine_gated<Affine<4>>) affine_gated_entry;
template [[host_name("gated_affine2")]] kernel affine_gated_entry affine_gated<Affine<2>>;
template [[host_name("gated_affine3")]] kernel affine_gated_entry affine_gated<Affine<3>>;
template [[host_name("gated_affine4")]] kernel affine_gated_entry affine_gated<Affine<4>>;
template [[host_name("gated_affine5")]] kernel affine_gated_entry affine_gated<Affine<5>>;
template [[host_name("gated_affine6")]] kernel affine_gated_entry affine_gated<Affine<6>>;
template [[host_name("gated_affine8")]] kernel affine_gated_entry affine_gated<Affine<8>>;

typedef decltype(affine_matmul<Affine<4>>) affine_matmul_entry;
template [[host_name("matmul_affine2")]] kernel affine_matmul_entry affine_matmul<Affine<2>>;
template [[host_name("matmul_affine3")]] kernel affine_matmul_entry affine_matmul<Affine<3>>;
template [[host_name("matmul_affine4")]] kernel affine_matmul_entry affine_matmul<Affine<4>>;
template [[host_name("matmul_affine5")]] kernel affine_matmul_entry affine_matmul<Affine<5>>;
template [[host_name("matmul_affine6")]] kernel affine_matmul_entry affine_matmul<Affine<6>>;
template [[host_name("matmul_affine8")]] kernel affine_matmul_entry affine_matmul<Affine<8>>;

typedef decltype(affine_embed<Affine<4>>) affine_embed_entry;
template [[host_name("embed_affine2")]] kernel affine_embed_entry affine_embed<Affine<2>>;
template [[host_name("embed_affine3")]] kernel affine_embed_entry affine_embed<Affine<3>>;
template [[host_name("embed_affine4")]] kernel affine_embed_entry affine_embed<Affine<4>>;
template [[host_name("embed_affine5")]] kernel affine_embed_entry affine_embed<Affine<5>>;
template [[host_name("embed_affine6")]] kernel affine_embed_entry affine_embed<Affine<6>>;
template [[host_name("embed_affine8")]] kernel affine_embed_entry affine_embed<Affine<8>>;

typedef decltype(affine_scores<Affine<4>>) affine_scores_entry;
template [[host_name("router_scores_affine2")]] kernel affine_scores_entry affine_scores<Affine<2>>;
template [[host_name("router_scores_affine3")]] kernel affine_scores_entry affine_scores<Affine<3>>;
template [[host_name("router_scores_affine4")]] kernel affine_scores_entry affine_scores<Affine<4>>;
template [[host_name("router_scores_affine5")]] kernel affine_scores_entry affine_scores<Affine<5>>;
template [[host_name("router_scores_affine6")]] kernel affine_scores_entry affine_scores<Affine<6>>;
template [[host_name("router_scores_affine8")]] kernel affine_scores_entry affine_scores<Affine<8>>;
