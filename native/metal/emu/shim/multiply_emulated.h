// The product of simdgroup matrices on fibers: the last lane to arrive multiplies for all.
#pragma once

namespace metal {

template <class A, class B>
struct MultiplyOperands {
  A a[2];
  B b[2];
};

template <class A, class B>
MOESTREAM_UNSEEN void multiply_all(moestream::emu::Simdgroup& simdgroup, uint32_t mask) {
  using Layout = simdgroup_matrix<float, 8, 8>;
  if (mask != ~0u) moestream::emu::fault("a matrix product with lanes %08x only", mask);
  float a[8][8];
  float b[8][8];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto& operands = emulated::slot<MultiplyOperands<A, B>>(simdgroup, lane);
    for (uint32_t i = 0; i < 2; ++i) {
      a[Layout::row_of(lane)][Layout::col_of(lane) + i] = static_cast<float>(operands.a[i]);
      b[Layout::row_of(lane)][Layout::col_of(lane) + i] = static_cast<float>(operands.b[i]);
    }
  }
  for (uint32_t row = 0; row < 8; ++row) {
    float sums[8] = {};
    for (uint32_t k = 0; k < 8; ++k) {
      for (uint32_t col = 0; col < 8; ++col) sums[col] += a[row][k] * b[k][col];
    }
    for (uint32_t col = 0; col < 8; ++col) emulated::result<float>(simdgroup, row * 8 + col) = sums[col];
  }
}

// d = a * b + c
template <class D, class A, class B, class C>
MOESTREAM_UNSEEN inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d,
                                                           const simdgroup_matrix<A, 8, 8>& a,
                                                           const simdgroup_matrix<B, 8, 8>& b,
                                                           const simdgroup_matrix<C, 8, 8>& c, MOESTREAM_PLACE) {
  moestream::emu::Simdgroup& simdgroup = *moestream::emu::current_lane->simdgroup;
  const uint32_t lane = moestream::emu::current_lane->lane;
  emulated::slot<MultiplyOperands<A, B>>(simdgroup, lane) = {{a.elements[0], a.elements[1]},
                                                             {b.elements[0], b.elements[1]}};
  moestream::emu::wait_for_simdgroup(place, multiply_all<A, B>);
  for (uint32_t i = 0; i < 2; ++i) {
    const float product = emulated::result<float>(simdgroup, d.row_of(lane) * 8 + d.col_of(lane) + i);
    d.elements[i] = static_cast<D>(product + static_cast<float>(c.elements[i]));
  }
}

}  // namespace metal
