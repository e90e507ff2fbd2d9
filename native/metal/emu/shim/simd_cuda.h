// Barriers and simdgroup functions on warps.
#pragma once

namespace moestream {
inline uint this_lane() { return ptx::thread_index() % 32; }
}  // namespace moestream

namespace metal {

constexpr uint kAllLanes = 0xffffffffu;

inline void threadgroup_barrier(mem_flags) { __nvvm_bar_sync(0); }
inline void simdgroup_barrier(mem_flags) { __nvvm_bar_warp_sync(kAllLanes); }

inline int from_lane(int value, uint lane) {
  return __nvvm_shfl_sync_idx_i32(kAllLanes, value, static_cast<int>(lane), 31);
}
inline uint from_lane(uint value, uint lane) { return static_cast<uint>(from_lane(static_cast<int>(value), lane)); }
inline float from_lane(float value, uint lane) { return as_type<float>(from_lane(as_type<int>(value), lane)); }

template <class T>
inline T simd_shuffle(T value, ushort lane) {
  return from_lane(value, lane);
}
template <class T>
inline T simd_broadcast(T value, ushort lane) {
  return from_lane(value, lane);
}
template <class T>
inline T simd_shuffle_xor(T value, ushort mask) {
  return from_lane(value, moestream::this_lane() ^ mask);
}

template <class T>
inline T simd_sum(T value) {
  for (uint distance = 16; distance > 0; distance /= 2) {
    value = value + simd_shuffle_xor(value, static_cast<ushort>(distance));
  }
  return value;
}
template <class T>
inline T simd_max(T value) {
  for (uint distance = 16; distance > 0; distance /= 2) {
    value = max(value, simd_shuffle_xor(value, static_cast<ushort>(distance)));
  }
  return value;
}
template <class T>
inline T simd_min(T value) {
  for (uint distance = 16; distance > 0; distance /= 2) {
    value = min(value, simd_shuffle_xor(value, static_cast<ushort>(distance)));
  }
  return value;
}

}  // namespace metal
