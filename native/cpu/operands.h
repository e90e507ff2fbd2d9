// What products are made of: matrices of a model file, inputs, and where the results go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor_type.h"

namespace moestream::cpu {

// Borrowed bytes of a model file: `rows` rows of `cols` values, each a whole number of blocks, at any address.
struct Matrix {
  TensorType type = TensorType::F32;
  std::size_t cols = 0;
  std::size_t rows = 0;
  const std::uint8_t* data = nullptr;
  const std::uint8_t* scales = nullptr;  // bf16, one per group, in affine types only
  const std::uint8_t* biases = nullptr;

  bool given() const { return data != nullptr; }
};

// The three arrays of an affine matrix back to back, as packed models keep them; any other matrix as it is.
inline std::size_t joined_bytes(TensorType type, std::size_t cols, std::size_t rows) {
  return rows * (row_bytes(type, cols) + 2 * side_row_bytes(type, cols));
}

inline Matrix joined_matrix(TensorType type, std::size_t cols, std::size_t rows, const std::uint8_t* data) {
  if (!is_affine(type)) return Matrix{type, cols, rows, data};
  const std::uint8_t* const scales = data + rows * row_bytes(type, cols);
  return Matrix{type, cols, rows, data, scales, scales + rows * side_row_bytes(type, cols)};
}

// The input of products: rows of floats. Precision `fast` rounds them to 8 bits inside each product: 0.2 microseconds
// for 2,048 values, less than keeping track of which rounded copy is still valid would be worth.
class Activations {
 public:
  Activations(std::span<const float> values, std::size_t cols) : values_(values), cols_(cols) {}

  const float* row(std::size_t index) const { return values_.data() + index * cols_; }
  std::size_t rows() const { return values_.size() / cols_; }
  std::size_t cols() const { return cols_; }

 private:
  std::span<const float> values_;  // (rows, cols)
  std::size_t cols_;
};

// Which rows of an input, and where their results go: result t of input row from[t] is row to[t] of the output.
struct RowMap {
  std::span<const std::uint32_t> from;
  std::span<const std::uint32_t> to;
};

struct Product {
  Matrix matrix;
  float* output;  // (output rows, matrix.rows)
};

}  // namespace moestream::cpu
