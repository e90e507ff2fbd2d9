// A stand-in for Metal 4's tensors and matrix product, of which the meaning was inferred from public use. The threads of
// the scope own the elements of a cooperative tensor in turn, which no kernel may rely on.
#pragma once

namespace metal {

template <class T, size_t kCount>
struct array {
  T elements[kCount];
  constexpr const T& operator[](size_t i) const { return elements[i]; }
};

template <class I, int kRank>
struct dextents {
  template <class... Extents>
  constexpr explicit dextents(Extents... extents) : at{static_cast<I>(extents)...} {}
  I at[kRank];
};

struct tensor_inline {};

// Two dimensions, the columns first.
template <class T, class Extents, class Kind>
struct tensor {
  tensor(T* from, Extents extents) : data(from), cols(extents.at[0]), rows(extents.at[1]), strides{{1, cols}} {}
  tensor(T* from, Extents extents, array<int, 2> given)
      : data(from), cols(extents.at[0]), rows(extents.at[1]), strides(given) {}

  bool has(int col, int row) const { return col < cols && row < rows; }
  T& at(int col, int row) const { return data[col * strides[0] + row * strides[1]]; }

  T* data;
  int cols;
  int rows;
  array<int, 2> strides;
};

template <int kCount>
struct execution_simdgroups {
  static constexpr int kSimdgroups = kCount;
};

}  // namespace metal

namespace mpp::tensor_ops {

struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };
  constexpr matmul2d_descriptor(int of_m, int of_n, int of_k, bool left, bool right, bool, mode of_mode)
      : m(of_m), n(of_n), k(of_k), transpose_left(left), transpose_right(right), kind(of_mode) {}
  int m, n, k;
  bool transpose_left, transpose_right;
  mode kind;
};

template <class T, int kRows, int kCols, int kThreads>
struct CooperativeTensor {
  static constexpr int kCapacity = (kRows * kCols + kThreads - 1) / kThreads;

  // The element's number in its tile, row by row.
  static int element(int i) { return i * kThreads + static_cast<int>(moestream::emu::current_lane->index) % kThreads; }

  constexpr ushort get_capacity() const { return kCapacity; }
  bool is_valid_element(int i) const { return element(i) < kRows * kCols; }
  T& operator[](int i) { return values[i]; }

  template <class Tensor>
  void store(const Tensor& to) const {
    for (int i = 0; i < kCapacity; ++i) {
      const int at = element(i);
      if (is_valid_element(i) && to.has(at % kCols, at / kCols)) to.at(at % kCols, at / kCols) = values[i];
    }
  }

  T values[kCapacity];
};

template <matmul2d_descriptor kDescriptor, class Scope>
struct matmul2d {
  static constexpr int kThreads = Scope::kSimdgroups * 32;

  template <class Left, class Right, class T>
  CooperativeTensor<T, kDescriptor.m, kDescriptor.n, kThreads> get_destination_cooperative_tensor() const {
    return {};
  }

  template <class Left, class Right, class Sums>
  void run(const Left& left, const Right& right, Sums& sums, MOESTREAM_PLACE) const {
    moestream::emu::wait_for_simdgroup(place, nullptr);
    for (int i = 0; i < Sums::kCapacity; ++i) {
      if (!sums.is_valid_element(i)) continue;
      const int row = Sums::element(i) / kDescriptor.n;
      const int col = Sums::element(i) % kDescriptor.n;
      float sum = 0.0f;
      for (int k = 0; k < kDescriptor.k; ++k) {
        sum += (kDescriptor.transpose_left ? left.at(row, k) : left.at(k, row)) *
               (kDescriptor.transpose_right ? right.at(k, col) : right.at(col, k));
      }
      const bool adds = kDescriptor.kind == matmul2d_descriptor::mode::multiply_accumulate;
      sums[i] = adds ? sums[i] + sum : sum;
    }
  }
};

}  // namespace mpp::tensor_ops
