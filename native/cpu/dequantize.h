// Exact values of quantised blocks.
//
// The formats define the arithmetic: float32, in one order of operations, with the results that every other reader of
// these files gets. Each type is held bit for bit against published vectors in test/native/dequantize.test.ts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor_type.h"

namespace moestream::cpu {

// Writes `values` floats (a whole number of blocks) from blocks that may start at any byte.
using RowDequantizer = void (*)(const std::uint8_t* blocks, float* out, std::size_t values);

RowDequantizer row_dequantizer(TensorType type);

// The same for an affine type, whose scales and biases stand apart.
using AffineDequantizer = void (*)(const std::uint8_t* codes, const std::uint8_t* scales, const std::uint8_t* biases,
                                   float* out, std::size_t values);

AffineDequantizer affine_dequantizer(Affine affine);

// One function per type, by family: dequantize.cpp, dequantize_k.cpp and dequantize_iq.cpp.
void dequantize_q2_k(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_q3_k(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_q4_k(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_q5_k(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_q6_k(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq2_xxs(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq2_xs(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq2_s(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq3_xxs(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq3_s(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq4_nl(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_iq4_xs(const std::uint8_t* blocks, float* out, std::size_t values);
void dequantize_mxfp4(const std::uint8_t* blocks, float* out, std::size_t values);

// Applies one block's function to every block of a row.
template <auto Block, std::size_t kBlockValues, std::size_t kBlockBytes>
void dequantize_blocks(const std::uint8_t* blocks, float* out, std::size_t values) {
  for (std::size_t done = 0; done < values; done += kBlockValues) {
    Block(blocks, out + done);
    blocks += kBlockBytes;
  }
}

}  // namespace moestream::cpu
