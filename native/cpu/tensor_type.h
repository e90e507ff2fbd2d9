// The element types of tensors: what one block holds and how many bytes it takes.
//
// A row is a whole number of blocks, so every size in the backend follows from (type, columns) through `row_bytes`, and
// nothing else knows a block's size. Ids below 256 are GGUF's. The affine types, which MLX checkpoints have, are numbered
// by their two parameters: 2 to 8 bits per value, and 32, 64 or 128 values that share a scale and a bias. Their blocks are
// spread over three arrays, codes, scales and biases; `row_bytes` counts the codes and `side_row_bytes` either of the rest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace moestream::cpu {

enum class TensorType : std::uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  BF16 = 30,
  MXFP4 = 39,
};

// value = code * scale + bias
struct Affine {
  unsigned bits;
  unsigned group;
};

constexpr std::uint32_t kFirstAffineId = 256;

constexpr TensorType affine_type(unsigned bits, unsigned group) {
  return static_cast<TensorType>(kFirstAffineId + 4 * bits + group / 64);
}

constexpr bool is_affine(TensorType type) { return static_cast<std::uint32_t>(type) >= kFirstAffineId; }

// Of an affine type.
constexpr Affine affine_of(TensorType type) {
  const std::uint32_t number = static_cast<std::uint32_t>(type) - kFirstAffineId;
  return {number / 4, 32u << (number % 4)};
}

struct TypeTraits {
  TensorType type;
  std::string_view name;
  std::size_t block_values;
  std::size_t block_bytes;
  std::size_t side_bytes = 0;  // of a block's scale, and of its bias, where they have arrays of their own
};

// Every type that the backend reads.
std::span<const TypeTraits> supported_types();

// Null when the id names no supported type.
const TypeTraits* find_type(std::uint32_t id);

const TypeTraits& traits_of(TensorType type);

// Bytes of one row of `cols` values; `cols` is a whole number of blocks.
std::size_t row_bytes(TensorType type, std::size_t cols);

// Bytes of one row's scales, and of its biases; 0 in types that keep them in their blocks.
std::size_t side_row_bytes(TensorType type, std::size_t cols);

}  // namespace moestream::cpu
