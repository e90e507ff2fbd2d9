// Products of quantised weights with activations that are quantised too: precision `fast`.
//
// Activations are rounded to 8 bits with one scale per 32 or 256 values, as each format's family does, and multiplied
// as integers: 1 to 4 instructions per 32 weights instead of 8 or more. What an output is has one definition, and every
// instruction set computes exactly that, so all of them give the same bits, for any number of rows, inputs or threads:
//
//   K and IQ types, per 256 values, in rising order:   sum += (d * isum - dmin * imin) * da
//   blocks of 32, block b into lane b % 8:             lane += (d * isum + m * iall) * da
//   (lane i += lane i + 4, then + 2, then + 1)
//
// Affine types are blocks of 32 with the d and m of their group. isum, imin and iall are integer sums of codes, scales and 8-bit activations and therefore exact in any order; the
// float operations are written above as they are rounded, none of them fused. F32, F16 and BF16 weights meet float
// activations, in the lanes of vector_kernels_body.h, which makes them equal to precision `exact`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "../tensor_type.h"

namespace moestream::cpu {

// What a kernel reads as its input.
enum class InputForm : std::uint8_t {
  kFloats,     // the float row itself
  kBlocks32,   // 8 bit, a scale per 32 values
  kBlocks256,  // 8 bit, a scale per 256 values
  kQuads256,   // the same in another order of values, where an instruction set has a use for it
};

constexpr std::size_t kPreparedForms = 3;  // all but kFloats
constexpr std::size_t kUnitValues = 256;
// Room for 256 prepared values in any form and instruction set.
constexpr std::size_t kUnitBytes = 448;

constexpr std::size_t prepared_bytes(std::size_t cols) { return (cols + kUnitValues - 1) / kUnitValues * kUnitBytes; }

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kTileInputs = 32;

// Some rows of a matrix times some inputs.
struct Tile {
  const std::uint8_t* weights;
  const std::uint8_t* scales;   // of affine types, as in Matrix
  const std::uint8_t* biases;
  std::size_t row_bytes;
  std::size_t side_row_bytes;
  std::size_t rows;           // at most kTileRows
  std::size_t cols;
  const void* const* inputs;  // in the kernel's form, 64-byte aligned when prepared
  std::size_t input_count;    // at most kTileInputs
  float* out;                 // (input_count, rows)
};

struct TypeKernel {
  InputForm form = InputForm::kFloats;
  void (*multiply)(const Tile& tile) = nullptr;
};

struct ProductKernels {
  const char* name;
  // Writes prepared_bytes(cols) from a row of floats.
  void (*prepare)(InputForm form, const float* row, std::size_t cols, std::byte* into);
  TypeKernel (*kernel_of)(TensorType type);
  // values[i] = silu(values[i]) * factors[i]
  void (*gate)(float* values, const float* factors, std::size_t count);
};

// The best set that this processor runs.
const ProductKernels& product_kernels();
// Every set that this processor runs, the best first, the portable one last.
std::span<const ProductKernels* const> all_product_kernels();

}  // namespace moestream::cpu
