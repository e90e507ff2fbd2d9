// Where the matrices of an expert lie in the slab.
#pragma once

#include <cstddef>

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

}  // namespace moestream::cpu
