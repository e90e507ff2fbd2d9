// Barriers and simdgroup functions on fibers.
//
// Every waiting function carries its place in the source: it tells which lanes wait together, and names the place in a
// fault. (Return addresses would not do: the compiler clones calls.) The exchange between lanes is hidden from
// ThreadSanitizer, because simd_sum is no fence: a kernel that used it as one would pass otherwise.
#pragma once

#define MOESTREAM_UNSEEN __attribute__((no_sanitize("thread")))
#define MOESTREAM_PLACE \
  uint32_t place = static_cast<uint32_t>(__builtin_LINE()) << 8 | (static_cast<uint32_t>(__builtin_COLUMN()) & 255u)

namespace metal {

inline void threadgroup_barrier(mem_flags, MOESTREAM_PLACE) { moestream::emu::wait_for_threadgroup(place); }
inline void simdgroup_barrier(mem_flags, MOESTREAM_PLACE) { moestream::emu::wait_for_simdgroup(place, nullptr); }

namespace emulated {

using moestream::emu::current_lane;
using moestream::emu::Simdgroup;

template <class T>
MOESTREAM_UNSEEN inline T& slot(Simdgroup& simdgroup, uint32_t lane) {
  static_assert(sizeof(T) <= Simdgroup::kSlotBytes, "an operand fits its slot");
  return *reinterpret_cast<T*>(simdgroup.slots[lane]);
}

template <class T>
MOESTREAM_UNSEEN inline T& result(Simdgroup& simdgroup, uint32_t lane) {
  return reinterpret_cast<T*>(simdgroup.results)[lane];
}

struct Sum {
  template <class T>
  MOESTREAM_UNSEEN static T of(T a, T b) {
    return static_cast<T>(a + b);
  }
};
struct Max {
  template <class T>
  MOESTREAM_UNSEEN static T of(T a, T b) {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  MOESTREAM_UNSEEN static T of(T a, T b) {
    return b < a ? b : a;
  }
};

// A tree over the lanes that take part: lane i with lane i + 16, then + 8, and so on.
template <class Operation, class T>
MOESTREAM_UNSEEN void reduce(Simdgroup& simdgroup, uint32_t mask) {
  T values[32];
  bool given[32];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    given[lane] = (mask >> lane & 1u) != 0;
    if (given[lane]) values[lane] = slot<T>(simdgroup, lane);
  }
  for (uint32_t half_width = 16; half_width > 0; half_width /= 2) {
    for (uint32_t lane = 0; lane < half_width; ++lane) {
      const uint32_t other = lane + half_width;
      if (!given[other]) continue;
      values[lane] = given[lane] ? Operation::of(values[lane], values[other]) : values[other];
      given[lane] = true;
    }
  }
  result<T>(simdgroup, 0) = values[0];
}

template <class Operation, class T>
MOESTREAM_UNSEEN inline T reduced(T value, uint32_t place) {
  Simdgroup& simdgroup = *current_lane->simdgroup;
  slot<T>(simdgroup, current_lane->lane) = value;
  moestream::emu::wait_for_simdgroup(place, reduce<Operation, T>);
  return result<T>(simdgroup, 0);
}

template <class T>
MOESTREAM_UNSEEN void snapshot(Simdgroup& simdgroup, uint32_t mask) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0) result<T>(simdgroup, lane) = slot<T>(simdgroup, lane);
  }
}

template <class T>
MOESTREAM_UNSEEN inline T from_lane(T value, uint32_t lane, uint32_t place) {
  Simdgroup& simdgroup = *current_lane->simdgroup;
  slot<T>(simdgroup, current_lane->lane) = value;
  const uint32_t active = moestream::emu::wait_for_simdgroup(place, snapshot<T>);
  if (lane > 31) moestream::emu::fault("a shuffle at line %u reads lane %u", place >> 8, lane);
  if ((active >> lane & 1u) == 0) {
    moestream::emu::fault("a shuffle at line %u reads lane %u, which is not active (%08x)", place >> 8, lane, active);
  }
  return result<T>(simdgroup, lane);
}

}  // namespace emulated

template <class T>
MOESTREAM_UNSEEN inline T simd_sum(T value, MOESTREAM_PLACE) {
  return emulated::reduced<emulated::Sum>(value, place);
}
template <class T>
MOESTREAM_UNSEEN inline T simd_max(T value, MOESTREAM_PLACE) {
  return emulated::reduced<emulated::Max>(value, place);
}
template <class T>
MOESTREAM_UNSEEN inline T simd_min(T value, MOESTREAM_PLACE) {
  return emulated::reduced<emulated::Min>(value, place);
}
template <class T>
MOESTREAM_UNSEEN inline T simd_shuffle(T value, ushort lane, MOESTREAM_PLACE) {
  return emulated::from_lane(value, lane, place);
}
template <class T>
MOESTREAM_UNSEEN inline T simd_broadcast(T value, ushort lane, MOESTREAM_PLACE) {
  return emulated::from_lane(value, lane, place);
}
template <class T>
MOESTREAM_UNSEEN inline T simd_shuffle_xor(T value, ushort mask, MOESTREAM_PLACE) {
  return emulated::from_lane(value, emulated::current_lane->lane ^ mask, place);
}

}  // namespace metal
