// The element types of GGUF tensors: what one block holds and how many bytes it takes.
//
// A row is a whole number of blocks, so every size in the backend follows from (type, columns) through `row_bytes`, and
// nothing else knows a block's size. Ids are those of the file format.
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

struct TypeTraits {
  TensorType type;
  std::string_view name;
  std::size_t block_values;
  std::size_t block_bytes;
};

// Every type that the backend reads.
std::span<const TypeTraits> supported_types();

// Null when the id names no supported type.
const TypeTraits* find_type(std::uint32_t id);

const TypeTraits& traits_of(TensorType type);

// Bytes of one row of `cols` values; `cols` is a whole number of blocks.
std::size_t row_bytes(TensorType type, std::size_t cols);

}  // namespace moestream::cpu
