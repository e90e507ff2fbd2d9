// Where the matrices of an expert lie in the slab.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "operands.h"

namespace moestream::cpu {

// Where a matrix begins in its slab segment, in bytes.
struct MatrixPlace {
  std::size_t data;
  std::size_t scales = 0;  // of affine types, where the arrays lie apart
  std::size_t biases = 0;
  bool apart = false;
};

struct ExpertPlaces {
  MatrixPlace gate;
  MatrixPlace up;
  MatrixPlace down;
};

// The matrix at `place` of a segment. Throws std::logic_error when it is not all inside, or a part of it has no place.
Matrix slab_matrix(std::span<const std::span<const std::uint8_t>> segments, std::size_t segment, const MatrixPlace& place,
                   TensorType type, std::size_t cols, std::size_t rows);

}  // namespace moestream::cpu
