// Matrix-vector products with MLX's affine formats: codes of 4 or 2 bits, and a scale and a bias (bfloat16) per group of
// 64 columns: value = scale * code + bias.
#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "functions.h"
#include "products.h"

#pragma METAL fp contract(off)

using namespace metal;
using namespace moestream::gpu;

struct Mlx4 {
  enum : uint { kBits = 4 };
};
struct Mlx2 {
  enum : uint { kBits = 2 };
};

struct AffineRow {
  device const uint *codes;
  device const ushort *scales;
  device const ushort *biases;
};

static inline float from_bfloat(ushort bits) { return as_type<float>(uint(bits) << 16); }

// The first four codes of `word`, one in each byte.
template <class Bits>
static inline uint four_bytes(uint word) {
  const uint bits = uint(Bits::kBits);
  const uint mask = (1u << bits) - 1;
  return (word & mask) | ((word >> bits) & mask) << 8 | ((word >> (2 * bits)) & mask) << 16 |
         ((word >> (3 * bits)) & mask) << 24;
}

// sum of row . x, in every lane. A lane takes 16 columns at a time.
template <class Bits>
static inline float affine_dot(AffineRow row, device const float *x, uint cols, uint lane) {
  const uint per_word = 32 / uint(Bits::kBits);
  float sum = 0.0f;
  for (uint col = 16 * lane; col < cols; col += 16 * kSimdWidth) {
    float4 products = float4(0.0f);
    float4 inputs = float4(0.0f);
#pragma unroll
    for (uint run = 0; run < 4; ++run) {
      const uint at = col + 4 * run;
      const uint word = row.codes[at / per_word] >> (at % per_word * uint(Bits::kBits));
      const float4 four = *(device const float4 *)(x + at);
      products = fma(four_codes(four_bytes<Bits>(word), 0.0f), four, products);
      inputs += four;
    }
    sum = fma(from_bfloat(row.scales[col / 64]), sum_of(products), sum);
    sum = fma(from_bfloat(row.biases[col / 64]), sum_of(inputs), sum);
  }
  return simd_sum(sum);
}

template <class Bits>
static inline AffineRow affine_row(device const uchar *codes, device const ushort *scales, device const ushort *biases,
                                   uint row, uint cols) {
  AffineRow found;
  found.codes = (device const uint *)codes + ulong(row) * (cols / (32 / uint(Bits::kBits)));
  found.scales = scales + ulong(row) * (cols / 64);
  found.biases = biases + ulong(row) * (cols / 64);
  return found;
}

template <class Bits>
kernel void affine_matvec(device const uchar *weights0 [[buffer(0)]], device const uchar *weights1 [[buffer(1)]],
                   device const uchar *weights2 [[buffer(2)]], device const uchar *weights3 [[buffer(3)]],
                   device const float *x [[buffer(4)]],  // (input rows, cols)
                   device float *y0 [[buffer(5)]], device float *y1 [[buffer(6)]], device float *y2 [[buffer(7)]],
                   device float *y3 [[buffer(8)]], constant MatvecArguments &arguments [[buffer(9)]],
                   device const uint *from [[buffer(10)]], device const uint *to [[buffer(11)]],
                   device const ushort *scales0 [[buffer(12)]], device const ushort *scales1 [[buffer(13)]],
                   device const ushort *scales2 [[buffer(14)]], device const ushort *scales3 [[buffer(15)]],
                   device const ushort *biases0 [[buffer(16)]], device const ushort *biases1 [[buffer(17)]],
                   device const ushort *biases2 [[buffer(18)]], device const ushort *biases3 [[buffer(19)]],
                   uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint s = 0;
  while (s + 1 < arguments.segments && group.x >= arguments.first_group[s + 1]) ++s;
  device const uchar *weights = s == 0 ? weights0 : s == 1 ? weights1 : s == 2 ? weights2 : weights3;
  device const ushort *scales = s == 0 ? scales0 : s == 1 ? scales1 : s == 2 ? scales2 : scales3;
  device const ushort *biases = s == 0 ? biases0 : s == 1 ? biases1 : s == 2 ? biases2 : biases3;
  device float *y = s == 0 ? y0 : s == 1 ? y1 : s == 2 ? y2 : y3;
  const uint rows = arguments.rows[s];
  const uint first = (group.x - arguments.first_group[s]) * kMatvecRows + 2 * simdgroup;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  device const float *input = x + ulong(from_row) * arguments.cols;
#pragma unroll
  for (uint i = 0; i < 2; ++i) {
    const uint row = min(first + i, rows - 1);
    const float sum = affine_dot<Bits>(affine_row<Bits>(weights, scales, biases, row, arguments.cols), input,
                                       arguments.cols, lane);
    if (lane == 0 && first + i < rows) y[ulong(to_row) * rows + first + i] = sum;
  }
}

template <class Bits>
kernel void affine_gated(device const uchar *gate [[buffer(0)]], device const uchar *up [[buffer(1)]],
                  device const float *x [[buffer(2)]],  // (input rows, cols)
                  device float *y [[buffer(3)]],        // (output rows, rows)
                  constant GatedArguments &arguments [[buffer(4)]], device const uint *from [[buffer(5)]],
                  device const uint *to [[buffer(6)]], device const ushort *gate_scales [[buffer(7)]],
                  device const ushort *gate_biases [[buffer(8)]], device const ushort *up_scales [[buffer(9)]],
                  device const ushort *up_biases [[buffer(10)]], uint3 group [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint row = group.x * kGatedRows + simdgroup;
  const uint inside = min(row, arguments.rows - 1);
  const uint cols = arguments.cols;
  const uint from_row = arguments.mapped != 0 ? from[group.y] : group.y;
  const uint to_row = arguments.mapped != 0 ? to[group.y] : group.y;
  device const float *input = x + ulong(from_row) * cols;
  const float gate_sum =
      affine_dot<Bits>(affine_row<Bits>(gate, gate_scales, gate_biases, inside, cols), input, cols, lane);
  const float up_sum = affine_dot<Bits>(affine_row<Bits>(up, up_scales, up_biases, inside, cols), input, cols, lane);
  if (lane == 0 && row < arguments.rows) y[ulong(to_row) * arguments.rows + row] = silu(gate_sum) * up_sum;
}

typedef decltype(affine_matvec<Mlx4>) affine_matvec_entry;
template [[host_name("matvec_mlx4")]] kernel affine_matvec_entry affine_matvec<Mlx4>;
template [[host_name("matvec_mlx2")]] kernel affine_matvec_entry affine_matvec<Mlx2>;

typedef decltype(affine_gated<Mlx4>) affine_gated_entry;
template [[host_name("gated_mlx4")]] kernel affine_gated_entry affine_gated<Mlx4>;
template [[host_name("gated_mlx2")]] kernel affine_gated_entry affine_gated<Mlx2>;
