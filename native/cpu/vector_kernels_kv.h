// Rows of keys and values in each type that they are kept in, for vector_kernels_body.h.
//
// A row is read in chunks of 32 values, one per lane, as vectors times the scale of the chunk where the type has one. Every stored number is a float32 exactly (a half float is, and 7
// bits times a half float's 11 are 18 bits), so all instruction sets read the same values. Rows are written with integer
// arithmetic and one float operation at a time, once per token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half_bits.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace moestream::cpu {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorFloats = 16;
#elif defined(__AVX__)
constexpr std::size_t kVectorFloats = 8;
#else
constexpr std::size_t kVectorFloats = 4;
#endif

constexpr std::size_t kLanes = 32;
constexpr std::size_t kVectors = kLanes / kVectorFloats;
using Vector = float __attribute__((vector_size(kVectorFloats * sizeof(float))));

template <class Value>
[[gnu::always_inline]] inline Value load_bytes(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Exact, as half_to_float of block_fields.h is.
[[gnu::always_inline]] inline float widen_half(std::uint32_t half) {
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  const float finite = __builtin_bit_cast(float, magnitude) * 0x1.0p+112f;
  const std::uint32_t bits =
      magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : __builtin_bit_cast(std::uint32_t, finite);
  return __builtin_bit_cast(float, bits | (half & 0x8000u) << 16);
}

struct FloatRows {
  static constexpr std::size_t kChunkBytes = kLanes * sizeof(float);
  static constexpr std::size_t bytes(std::size_t count) { return count * sizeof(float); }

  [[gnu::always_inline]] static float scale(const std::uint8_t*) { return 1.0f; }

  [[gnu::always_inline]] static Vector vector(const std::uint8_t* from, std::size_t v, float) {
    return load_bytes<Vector>(from + v * sizeof(Vector));
  }

  static void store(const float* from, std::size_t count, std::uint8_t* into) {
    std::memcpy(into, from, count * sizeof(float));
  }
};

struct HalfRows {
  static constexpr std::size_t kChunkBytes = kLanes * sizeof(std::uint16_t);
  static constexpr std::size_t bytes(std::size_t count) { return count * sizeof(std::uint16_t); }

  [[gnu::always_inline]] static Vector widened(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(load_bytes<__m256i>(from));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(load_bytes<__m128i>(from));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(load_bytes<uint16x4_t>(from)));
#else
    using Halves = std::uint16_t __attribute__((vector_size(kVectorFloats * 2)));
    using Words = std::uint32_t __attribute__((vector_size(kVectorFloats * 4)));
    const Words half = __builtin_convertvector(load_bytes<Halves>(from), Words);
    const Words magnitude = (half & 0x7fffu) << 13;
    const Vector finite = __builtin_bit_cast(Vector, magnitude) * 0x1.0p+112f;
    // Infinities and NaNs keep their largest exponent.
    const Words special = __builtin_bit_cast(Words, magnitude > (0x7bffu << 13)) & (magnitude | 0x7f800000u);
    return __builtin_bit_cast(Vector, __builtin_bit_cast(Words, finite) | special | (half & 0x8000u) << 16);
#endif
  }

  [[gnu::always_inline]] static float scale(const std::uint8_t*) { return 1.0f; }

  [[gnu::always_inline]] static Vector vector(const std::uint8_t* from, std::size_t v, float) {
    return widened(from + v * kVectorFloats * sizeof(std::uint16_t));
  }

  static void store(const float* from, std::size_t count, std::uint8_t* into) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint16_t half = round_to_half(from[i]);
      std::memcpy(into + i * sizeof half, &half, sizeof half);
    }
  }
};

// 32 values: a half float, then 32 integers of 8 bits that it is multiplied with.
struct ByteRows {
  static constexpr std::size_t kChunkBytes = sizeof(std::uint16_t) + kLanes;
  static constexpr std::size_t bytes(std::size_t count) { return count / kLanes * kChunkBytes; }

  [[gnu::always_inline]] static Vector widened(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes<__m128i>(from)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_bytes<long long>(from))));
#else
    using Bytes = std::int8_t __attribute__((vector_size(kVectorFloats)));
    return __builtin_convertvector(load_bytes<Bytes>(from), Vector);
#endif
  }

  [[gnu::always_inline]] static float scale(const std::uint8_t* from) {
    const std::uint16_t half = load_bytes<std::uint16_t>(from);
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    return widen_half(half);
#endif
  }

  [[gnu::always_inline]] static Vector vector(const std::uint8_t* from, std::size_t v, float scale) {
    return widened(from + sizeof(std::uint16_t) + v * kVectorFloats) * scale;
  }

  static void store(const float* from, std::size_t count, std::uint8_t* into) {
    for (std::size_t i = 0; i < count; i += kLanes, into += kChunkBytes) store_block(from + i, into);
  }

 private:
  static void store_block(const float* from, std::uint8_t* into) {
    // Compared as integers, so that a NaN is larger than everything.
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < kLanes; ++i) {
      const std::uint32_t magnitude = __builtin_bit_cast(std::uint32_t, from[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const bool finite = largest < 0x7f800000u;
    const float step = __builtin_bit_cast(float, largest) / 127.0f;
    // What is no number stays none: a NaN times any code.
    const std::uint16_t scale = finite ? round_to_half(step) : std::uint16_t{0x7e00u};
    std::memcpy(into, &scale, sizeof scale);
    const float factor = finite && scale != 0 ? 1.0f / step : 0.0f;
    std::int8_t codes[kLanes];
    for (std::size_t i = 0; i < kLanes; ++i) {
      // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even.
      const float product = factor == 0.0f ? 0.0f : from[i] * factor;
      codes[i] = static_cast<std::int8_t>(static_cast<std::int32_t>((product + 0x1.8p+23f) - 0x1.8p+23f));
    }
    std::memcpy(into + sizeof scale, codes, sizeof codes);
  }
};

}  // namespace
}  // namespace moestream::cpu
