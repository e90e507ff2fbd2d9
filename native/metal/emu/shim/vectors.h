// Metal's vector types as a class: ext_vector_type would be shorter, but its float4(int4) copies bits where Metal
// converts values. Only what the kernels use; a missing swizzle is a compile error, never another meaning.
#pragma once

namespace metal {

template <bool kCondition>
struct EnableIf {};
template <>
struct EnableIf<true> {
  using Type = int;
};

template <class T>
inline constexpr bool kIsScalar = __is_arithmetic(T) || __is_same(T, half);

template <class T, int kCount>
struct Storage;
template <class T>
struct Storage<T, 2> {
  union {
    struct {
      T x, y;
    };
    T at[2];
  };
};
template <class T>
struct Storage<T, 3> {
  union {
    struct {
      T x, y, z;
    };
    T at[4];
  };
};
template <class T>
struct Storage<T, 4> {
  union {
    struct {
      T x, y, z, w;
    };
    T at[4];
  };
};

template <class T, int kCount>
struct alignas(sizeof(T) * (kCount == 3 ? 4 : kCount)) vec : Storage<T, kCount> {
  using Storage<T, kCount>::at;

  vec() = default;  // as in Metal, a local starts uninitialised

  template <class S, typename EnableIf<kIsScalar<S>>::Type = 0>
  constexpr vec(S value) : Storage<T, kCount>{} {
    for (int i = 0; i < kCount; ++i) at[i] = static_cast<T>(value);
  }

  template <class S>
  constexpr explicit vec(const vec<S, kCount>& other) : Storage<T, kCount>{} {
    for (int i = 0; i < kCount; ++i) at[i] = static_cast<T>(other.at[i]);
  }

  template <class A, class B, class... Rest>
  constexpr vec(A a, B b, Rest... rest) : Storage<T, kCount>{} {
    static_assert(sizeof...(Rest) + 2 == kCount, "a vector is made of one value or as many as it has");
    int i = 0;
    at[i++] = static_cast<T>(a);
    at[i++] = static_cast<T>(b);
    ((at[i++] = static_cast<T>(rest)), ...);
  }

#if !defined(MOESTREAM_PTX)
  constexpr explicit vec(const moestream::emu::Triple& value) : Storage<T, kCount>{} {
    for (int i = 0; i < kCount; ++i) at[i] = static_cast<T>(value.v[i]);
  }
#endif

  template <class I>
  constexpr T& operator[](I i) {
    return at[i];
  }
  template <class I>
  constexpr const T& operator[](I i) const {
    return at[i];
  }
};

#define MOESTREAM_VECTOR_OPERATOR(op)                                                                          \
  template <class T, int kCount>                                                                               \
  constexpr vec<T, kCount> operator op(const vec<T, kCount>& a, const vec<T, kCount>& b) {                     \
    vec<T, kCount> result;                                                                                     \
    for (int i = 0; i < kCount; ++i) result.at[i] = static_cast<T>(a.at[i] op b.at[i]);                        \
    return result;                                                                                             \
  }                                                                                                            \
  template <class T, int kCount, class S, typename EnableIf<kIsScalar<S>>::Type = 0>                           \
  constexpr vec<T, kCount> operator op(const vec<T, kCount>& a, S b) {                                         \
    return a op vec<T, kCount>(b);                                                                             \
  }                                                                                                            \
  template <class T, int kCount, class S, typename EnableIf<kIsScalar<S>>::Type = 0>                           \
  constexpr vec<T, kCount> operator op(S a, const vec<T, kCount>& b) {                                         \
    return vec<T, kCount>(a) op b;                                                                             \
  }                                                                                                            \
  template <class T, int kCount, class S>                                                                      \
  constexpr vec<T, kCount>& operator op##=(vec<T, kCount>& a, const S& b) {                                    \
    return a = a op b;                                                                                         \
  }
MOESTREAM_VECTOR_OPERATOR(+)
MOESTREAM_VECTOR_OPERATOR(-)
MOESTREAM_VECTOR_OPERATOR(*)
MOESTREAM_VECTOR_OPERATOR(/)
MOESTREAM_VECTOR_OPERATOR(&)
MOESTREAM_VECTOR_OPERATOR(|)
MOESTREAM_VECTOR_OPERATOR(^)
MOESTREAM_VECTOR_OPERATOR(<<)
MOESTREAM_VECTOR_OPERATOR(>>)
#undef MOESTREAM_VECTOR_OPERATOR

// Four floats at any multiple of four bytes.
struct packed_float4 {
  float at[4];
  explicit operator vec<float, 4>() const { return {at[0], at[1], at[2], at[3]}; }
};

using char4 = vec<signed char, 4>;
using uchar2 = vec<uchar, 2>;
using uchar4 = vec<uchar, 4>;
using ushort2 = vec<ushort, 2>;
using ushort4 = vec<ushort, 4>;
using int4 = vec<int, 4>;
using uint2 = vec<uint, 2>;
using uint3 = vec<uint, 3>;
using uint4 = vec<uint, 4>;
using ulong2 = vec<ulong, 2>;
using half2 = vec<half, 2>;
using half4 = vec<half, 4>;
using float2 = vec<float, 2>;
using float4 = vec<float, 4>;

}  // namespace metal

using metal::char4;
using metal::float2;
using metal::float4;
using metal::half2;
using metal::half4;
using metal::int4;
using metal::packed_float4;
using metal::uchar2;
using metal::uchar4;
using metal::uint2;
using metal::uint3;
using metal::uint4;
using metal::ulong2;
using metal::ushort2;
using metal::ushort4;
