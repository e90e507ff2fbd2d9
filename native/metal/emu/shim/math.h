// The mathematical functions that the kernels use. Those that Metal leaves inexact (exp, log) the kernels compute
// themselves, so that every device gives the same bits; what is here is exact everywhere.
#pragma once

namespace metal {

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float rint(float x) { return __builtin_rintf(x); }
inline float fabs(float x) { return __builtin_fabsf(x); }

#if !defined(MOESTREAM_PTX)
inline float sqrt(float x) { return __builtin_sqrtf(x); }
#else
inline float sqrt(float x) { return __nvvm_sqrt_rn_f(x); }
#endif

namespace precise {
using metal::sqrt;
}

// Both arguments have one type, as mixed ones are ambiguous in Metal too.
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
constexpr T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T>
constexpr T select(T no, T yes, bool condition) {
  return condition ? yes : no;
}

template <int kCount>
inline vec<float, kCount> fma(const vec<float, kCount>& a, const vec<float, kCount>& b, const vec<float, kCount>& c) {
  vec<float, kCount> result;
  for (int i = 0; i < kCount; ++i) result.at[i] = fma(a.at[i], b.at[i], c.at[i]);
  return result;
}

inline uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<uint>(a) | static_cast<uint>(b));
}

}  // namespace metal
