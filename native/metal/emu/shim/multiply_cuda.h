// The product of simdgroup matrices by shuffles. Right, and slow: warp matrix instructions have no float32 operands.
#pragma once

namespace metal {

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                          const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c) {
  const uint row = d.row_of(moestream::this_lane());
  const uint col = d.col_of(moestream::this_lane());
  float sums[2] = {static_cast<float>(c.elements[0]), static_cast<float>(c.elements[1])};
  for (uint k = 0; k < 8; ++k) {
    // The lane that holds (row, col) for an even col; the one behind it holds col + 1.
    const auto holder = [](uint at_row, uint at_col) {
      return (at_row & 4) << 2 | (at_row & 3) << 1 | (at_col & 4) << 1 | (at_col >> 1 & 1);
    };
    const float even = from_lane(static_cast<float>(a.elements[0]), holder(row, k));
    const float odd = from_lane(static_cast<float>(a.elements[1]), holder(row, k));
    const float left = k % 2 == 0 ? even : odd;
    for (uint i = 0; i < 2; ++i) {
      sums[i] += left * from_lane(static_cast<float>(b.elements[i]), holder(k, col));
    }
  }
  for (uint i = 0; i < 2; ++i) d.elements[i] = static_cast<D>(sums[i]);
}

}  // namespace metal
