// F32, F16 and BF16 weights with float activations, and the gate of a feed-forward; compiled once per instruction set.
//
// The dot product is that of vector_kernels_body.h, lane for lane: 32 float lanes, multiply then add, one fixed tree.
// Weights are read from memory at 2 to 4 bytes a value, about one value per cycle and core, so not fusing costs
// nothing.
#pragma once

#include "../elementary.h"
#include "fields.h"
#include "products.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace moestream::cpu {
namespace {

#if defined(__AVX512F__)
constexpr std::size_t kVectorFloats = 16;
constexpr std::size_t kInputsAtOnce = 4;
#elif defined(__AVX__)
constexpr std::size_t kVectorFloats = 8;
constexpr std::size_t kInputsAtOnce = 2;
#else
constexpr std::size_t kVectorFloats = 4;
constexpr std::size_t kInputsAtOnce = 1;
#endif

constexpr std::size_t kFloatLanes = 32;
constexpr std::size_t kFloatVectors = kFloatLanes / kVectorFloats;
using FloatVector = float __attribute__((vector_size(kVectorFloats * sizeof(float))));

struct LoadF32 {
  static constexpr std::size_t kBytes = 4;
  static FloatVector vector(const std::uint8_t* from) { return load_as<FloatVector>(from); }
};

struct LoadBf16 {
  static constexpr std::size_t kBytes = 2;
  static FloatVector vector(const std::uint8_t* from) {
    using Halves = std::uint16_t __attribute__((vector_size(kVectorFloats * 2)));
    using Words = std::uint32_t __attribute__((vector_size(kVectorFloats * 4)));
    const Words words = __builtin_convertvector(load_as<Halves>(from), Words) << 16;
    return __builtin_bit_cast(FloatVector, words);
  }
};

struct LoadF16 {
  static constexpr std::size_t kBytes = 2;
  static FloatVector vector(const std::uint8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(load_as<__m256i>(from));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(load_as<__m128i>(from));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(load_as<uint16x4_t>(from)));
#else
    FloatVector values;
    for (std::size_t i = 0; i < kVectorFloats; ++i) values[i] = half_at(from + 2 * i);
    return values;
#endif
  }
};

// Adds lane i and lane i + half until one is left.
inline float sum_of_float_lanes(const FloatVector (&lanes)[kFloatVectors]) {
  float values[kFloatLanes];
  std::memcpy(values, lanes, sizeof values);
  for (std::size_t half = kFloatLanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

template <class Load, std::size_t kInputs>
[[gnu::always_inline]] inline void add_products(FloatVector (&lanes)[kInputs][kFloatVectors],
                                                const std::uint8_t* weights, const float* const (&inputs)[kInputs]) {
  for (std::size_t v = 0; v < kFloatVectors; ++v) {
    const FloatVector weight = Load::vector(weights + v * kVectorFloats * Load::kBytes);
    for (std::size_t n = 0; n < kInputs; ++n) {
      lanes[n][v] += weight * load_as<FloatVector>(inputs[n] + v * kVectorFloats);
    }
  }
}

template <class Load, std::size_t kInputs>
void dot_float_row(const std::uint8_t* weights, const void* const* inputs, std::size_t cols, float (&out)[kInputs]) {
  FloatVector lanes[kInputs][kFloatVectors] = {};
  const std::size_t whole = cols / kFloatLanes * kFloatLanes;
  for (std::size_t i = 0; i < whole; i += kFloatLanes) {
    const float* at[kInputs];
    for (std::size_t n = 0; n < kInputs; ++n) at[n] = static_cast<const float*>(inputs[n]) + i;
    fetch_ahead(weights + i * Load::kBytes, kFloatLanes * Load::kBytes);
    add_products<Load, kInputs>(lanes, weights + i * Load::kBytes, at);
  }
  if (whole < cols) {
    // The rest is padded with zeros and goes through the same lanes.
    std::uint8_t rest[kFloatLanes * Load::kBytes] = {};
    float values[kInputs][kFloatLanes] = {};
    const float* at[kInputs];
    std::memcpy(rest, weights + whole * Load::kBytes, (cols - whole) * Load::kBytes);
    for (std::size_t n = 0; n < kInputs; ++n) {
      std::memcpy(values[n], static_cast<const float*>(inputs[n]) + whole, (cols - whole) * sizeof(float));
      at[n] = values[n];
    }
    add_products<Load, kInputs>(lanes, rest, at);
  }
  for (std::size_t n = 0; n < kInputs; ++n) out[n] = sum_of_float_lanes(lanes[n]);
}

template <class Load>
void multiply_floats(const Tile& tile) {
  for (std::size_t r = 0; r < tile.rows; ++r) {
    const std::uint8_t* const row = tile.weights + r * tile.row_bytes;
    std::size_t t = 0;
    for (; t + kInputsAtOnce <= tile.input_count; t += kInputsAtOnce) {
      float sums[kInputsAtOnce];
      dot_float_row<Load, kInputsAtOnce>(row, tile.inputs + t, tile.cols, sums);
      for (std::size_t n = 0; n < kInputsAtOnce; ++n) tile.out[(t + n) * tile.rows + r] = sums[n];
    }
    for (; t < tile.input_count; ++t) {
      float sum[1];
      dot_float_row<Load, 1>(row, tile.inputs + t, tile.cols, sum);
      tile.out[t * tile.rows + r] = sum[0];
    }
  }
}

inline void gate_values(float* __restrict values, const float* __restrict factors, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = silu(values[i]) * factors[i];
}

}  // namespace
}  // namespace moestream::cpu
