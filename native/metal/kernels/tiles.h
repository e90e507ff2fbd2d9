// Tiles of the matrix-matrix kernels: weights as floats, and the inputs that `from` names.
//
// A part of a block reaches over up to 128 columns (the planes of the 2-bit and 3-bit formats), so a weight tile is 32
// rows by 128 columns: 16 KB. Inputs are gathered 32 columns at a time. With the largest codebook that is 28 KB of the
// 32 that a threadgroup has.
#pragma once

#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "products.h"

namespace moestream {
namespace gpu {

constant constexpr uint kTileCols = 128;
constant constexpr uint kSliceCols = 32;

// Inputs and outputs, and which of their rows belong together.
struct TileRows {
  device const float *x;  // (rows, cols)
  device float *y;        // (output rows, rows)
  device const uint *from;
  device const uint *to;
};

static inline TileRows tile_rows(device const float *x, device float *y, device const uint *from, device const uint *to) {
  TileRows rows;
  rows.x = x;
  rows.y = y;
  rows.from = from;
  rows.to = to;
  return rows;
}

// Rows beyond the matrix are its last row, columns beyond it are zero.
template <class F, class Arrays>
static inline void unpack_tile(Arrays weights, constant MatmulArguments &arguments, uint first_row,
                               uint first_col, threadgroup const uint *book, threadgroup float *tile,
                               uint thread_index) {
  const uint parts_per_block = uint(F::kBlockValues) / uint(F::kPart);
  const uint parts_per_row = kTileCols / uint(F::kPart);
  const uint runs_per_scale = uint(F::kPart) / 4 / uint(F::kScales);
  for (uint i = thread_index; i < kMatmulRows * parts_per_row; i += kMatmulThreads) {
    const uint row = i / parts_per_row;
    const uint index = first_col / uint(F::kPart) + i % parts_per_row;
    const bool inside = index < arguments.cols / uint(F::kPart);
    const uint block = index / parts_per_block;
    const uint part = index % parts_per_block;
    Part<F> found;
    unpack_part<F>(row_of<F>(weights, min(first_row + row, arguments.rows - 1), arguments.cols), inside ? block : 0, part,
                   book, found);
#pragma unroll
    for (uint run = 0; run < uint(F::kPart) / 4; ++run) {
      float4 values = found.codes[run] * found.scales[run / runs_per_scale];
      if (F::kHasMinimum != 0) values = values - found.minimums[run / runs_per_scale];
      const uint col = block * uint(F::kBlockValues) + F::column(part, run) - first_col;
      *(threadgroup float4 *)(tile + row * kTileCols + col) = inside ? values : float4(0.0f);
    }
  }
}

// kMatmulInputs rows of kSliceCols columns from `first_col` on; inputs beyond the last are the last.
static inline void gather_tile(device const float *x, constant MatmulArguments &arguments, device const uint *from,
                               uint first_input, uint first_col, threadgroup float *tile, uint thread_index) {
  for (uint i = thread_index; i < kMatmulInputs * kSliceCols / 4; i += kMatmulThreads) {
    const uint input = min(first_input + i / (kSliceCols / 4), arguments.inputs - 1);
    const uint at = first_col + 4 * (i % (kSliceCols / 4));
    const uint from_row = arguments.mapped != 0 ? from[input] : input;
    *(threadgroup float4 *)(tile + 4 * i) =
        at < arguments.cols ? *(device const float4 *)(x + ulong(from_row) * arguments.cols + at) : float4(0.0f);
  }
}

}  // namespace gpu
}  // namespace moestream
