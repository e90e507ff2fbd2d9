// Metal's library for the address-space check: the kernels as C++ for OpenCL, whose rules for address spaces clang knows
// (a device pointer is no thread pointer, constants are not written). Syntax only; nothing of it is run.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable

#define device __global
#define constant __constant
#define thread __private

#define INFINITY __builtin_inff()

struct packed_float4 {
  float values[4];
};

namespace strict {

template <class Vector, int kWidth, class... Values>
Vector make(Values...) {
  static_assert(sizeof...(Values) == 1 || sizeof...(Values) == kWidth, "a vector is made of one value or of all");
  Vector vector;
  return vector;
}

}  // namespace strict

template <class To, class From>
To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  return to;
}

namespace metal {

enum class mem_flags : uint { mem_none, mem_device, mem_threadgroup };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
template <class T>
T simd_sum(T);
template <class T>
T simd_max(T);
template <class T>
T simd_min(T);
template <class T>
T simd_shuffle(T, ushort);
template <class T>
T simd_broadcast(T, ushort);
template <class T>
T simd_shuffle_xor(T, ushort);

namespace precise {
float sqrt(float);
}

template <class T, int kCols, int kRows>
struct simdgroup_matrix {
  T elements[2];
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
template <class T, int kCols, int kRows>
simdgroup_matrix<T, kCols, kRows> make_filled_simdgroup_matrix(T);
// Memory of these is the device's or the threadgroup's.
template <class T>
void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, __local const T*, ulong, ulong2 = (ulong2)(0), bool = false);
template <class T>
void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, __global const T*, ulong, ulong2 = (ulong2)(0), bool = false);
template <class T>
void simdgroup_store(__private const simdgroup_matrix<T, 8, 8>&, __local T*, ulong, ulong2 = (ulong2)(0));
template <class T>
void simdgroup_store(__private const simdgroup_matrix<T, 8, 8>&, __global T*, ulong, ulong2 = (ulong2)(0));
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>&, __private const simdgroup_matrix<A, 8, 8>&,
                                   __private const simdgroup_matrix<B, 8, 8>&,
                                   __private const simdgroup_matrix<C, 8, 8>&);

}  // namespace metal

// Not in Metal's language.
#pragma clang poison double dynamic_cast typeid throw try catch virtual goto new delete

// Metal converts by constructor; OpenCL has no such call for its vectors.
#define float4(...) strict::make<float4, 4>(__VA_ARGS__)
#define float2(...) strict::make<float2, 2>(__VA_ARGS__)
#define half2(...) strict::make<half2, 2>(__VA_ARGS__)
#define ulong2(...) strict::make<ulong2, 2>(__VA_ARGS__)
