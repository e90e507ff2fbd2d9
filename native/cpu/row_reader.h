// Rows of a matrix as floats, whatever its type.
#pragma once

#include "dequantize.h"
#include "operands.h"

namespace moestream::cpu {

class RowReader {
 public:
  explicit RowReader(const Matrix& matrix)
      : matrix_(matrix),
        row_bytes_(row_bytes(matrix.type, matrix.cols)),
        side_row_bytes_(side_row_bytes(matrix.type, matrix.cols)) {
    if (is_affine(matrix.type)) {
      affine_ = affine_dequantizer(affine_of(matrix.type));
    } else {
      blocks_ = row_dequantizer(matrix.type);
    }
  }

  // Row `row` to (cols) floats.
  void read(std::size_t row, float* into) const {
    const std::uint8_t* const data = matrix_.data + row * row_bytes_;
    if (affine_ == nullptr) return blocks_(data, into, matrix_.cols);
    const std::size_t side = row * side_row_bytes_;
    affine_(data, matrix_.scales + side, matrix_.biases + side, into, matrix_.cols);
  }

  // `count` rows from `first` to (count, cols) floats.
  void read(std::size_t first, std::size_t count, float* into) const {
    for (std::size_t r = 0; r < count; ++r) read(first + r, into + r * matrix_.cols);
  }

 private:
  Matrix matrix_;
  RowDequantizer blocks_ = nullptr;
  AffineDequantizer affine_ = nullptr;
  std::size_t row_bytes_;
  std::size_t side_row_bytes_;
};

}  // namespace moestream::cpu
