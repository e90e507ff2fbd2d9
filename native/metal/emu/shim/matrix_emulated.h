// simdgroup matrices of 8 x 8: two elements per lane. Which lane holds which is inferred from public use and is no part
// of the language, so kernels reach elements by load and store alone.
#pragma once

namespace metal {

template <class T, int kCols, int kRows>
struct simdgroup_matrix {
  static_assert(kCols == 8 && kRows == 8, "a simdgroup matrix is 8 x 8");
  T elements[2];

  static uint row_of(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
  static uint col_of(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }
};

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;

template <class T, int kCols, int kRows>
inline simdgroup_matrix<T, kCols, kRows> make_filled_simdgroup_matrix(T value) {
  return {{value, value}};
}

// With `transpose`, what stands at (row, col) of memory comes to (col, row).
template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const T* from, ulong stride, ulong2 origin = ulong2(0),
                           bool transpose = false) {
  const uint lane = moestream::this_lane();
  const ulong row = matrix.row_of(lane);
  for (uint i = 0; i < 2; ++i) {
    const ulong col = matrix.col_of(lane) + i;
    const ulong memory_row = origin.y + (transpose ? col : row);
    const ulong memory_col = origin.x + (transpose ? row : col);
    matrix.elements[i] = from[memory_row * stride + memory_col];
  }
}

template <class T>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& matrix, T* to, ulong stride, ulong2 origin = ulong2(0)) {
  const uint lane = moestream::this_lane();
  for (uint i = 0; i < 2; ++i) {
    to[(origin.y + matrix.row_of(lane)) * stride + origin.x + matrix.col_of(lane) + i] = matrix.elements[i];
  }
}

}  // namespace metal
