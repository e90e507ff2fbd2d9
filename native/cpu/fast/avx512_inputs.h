// Activations as the AVX-512 kernels read them.
//
// Codes are ordered so that lane 2b and lane 2b + 1 (of 16 lanes of 32 bits) hold values of block b alone, whichever of
// the four vectors they come from: four byte dot products then add up in one register, and one multiplication applies
// all eight scales. In kBlocks32 and kBlocks256, 8 bytes at position b of vector i are values 32b + 8i ... + 7. In
// kQuads256, byte m of vector i is value 4m + i: what a table of four-value codebook entries gives without shuffling.
//
// Weights are unsigned bytes with an offset, so a dot product starts from minus offset times the sum of the input's
// codes. The largest offset is 128; what smaller ones need is a shift of it.
#pragma once

#include <immintrin.h>

#include "fields.h"
#include "products.h"

namespace moestream::cpu {
namespace {

struct alignas(64) PlanarUnit {
  std::int8_t codes[4][64];
  // -128 * the lane's sum over vectors 0 and 1, and over 2 and 3. In kBlocks32 and kQuads256: all of it, and 0.
  std::int32_t offsets[2][16];
  float scale[16];              // kBlocks32: of block b in lanes 2b and 2b + 1; else the same everywhere
};
static_assert(sizeof(PlanarUnit) == kUnitBytes);

[[gnu::always_inline]] inline __m512i largest_bits(__m512i largest, const float* values) {
  const __m512i magnitude = _mm512_and_si512(load_as<__m512i>(values), _mm512_set1_epi32(0x7fffffff));
  return _mm512_max_epi32(largest, magnitude);
}

// Codes in the order of their values; `to_code` per 32 values.
[[gnu::always_inline]] inline void round_unit(const float* values, const float* to_code, std::int8_t* codes) {
  for (int v = 0; v < 16; ++v) {
    const __m512 scaled = _mm512_mul_ps(load_as<__m512>(values + 16 * v), _mm512_set1_ps(to_code[v / 2]));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
    std::memcpy(codes + 16 * v, &bytes, sizeof bytes);
  }
}

// Eights (values 8q .. 8q + 7) of eight blocks, from block-major to vector-major: see PlanarUnit.
[[gnu::always_inline]] inline void transpose_eights(const __m512i (&pairs)[4], __m512i (&planes)[4]) {
  // pairs[j] is block j in its lower half and block j + 4 in its upper half.
  const __m512i even[2] = {_mm512_unpacklo_epi64(pairs[0], pairs[1]), _mm512_unpacklo_epi64(pairs[2], pairs[3])};
  const __m512i odd[2] = {_mm512_unpackhi_epi64(pairs[0], pairs[1]), _mm512_unpackhi_epi64(pairs[2], pairs[3])};
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  planes[0] = _mm512_permutex2var_epi64(even[0], first, even[1]);
  planes[1] = _mm512_permutex2var_epi64(odd[0], first, odd[1]);
  planes[2] = _mm512_permutex2var_epi64(even[0], second, even[1]);
  planes[3] = _mm512_permutex2var_epi64(odd[0], second, odd[1]);
}

// 32 bytes at `low` and 32 at `high` in one register.
[[gnu::always_inline]] inline __m512i join_halves(const void* low, const void* high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_as<__m256i>(low)), load_as<__m256i>(high), 1);
}

[[gnu::always_inline]] inline void to_planes(const std::int8_t* codes, __m512i (&planes)[4]) {
  __m512i pairs[4];
  for (int j = 0; j < 4; ++j) pairs[j] = join_halves(codes + 32 * j, codes + 32 * j + 128);
  transpose_eights(pairs, planes);
}

// Byte m of vector i becomes value 4m + i.
[[gnu::always_inline]] inline void to_quads(const std::int8_t* codes, __m512i (&planes)[4]) {
  const __m512i by_rest = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m512i part[4];
  for (int j = 0; j < 4; ++j) part[j] = _mm512_shuffle_epi8(load_as<__m512i>(codes + 64 * j), by_rest);
  // Lane 4k + i of part j: values 4m + i for m = 16j + 4k ... + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512i pick = _mm512_setr_epi32(i, 4 + i, 8 + i, 12 + i, 16 + i, 20 + i, 24 + i, 28 + i, 0, 0, 0, 0, 0, 0,
                                           0, 0);
    const __m256i low = _mm512_castsi512_si256(_mm512_permutex2var_epi32(part[0], pick, part[1]));
    const __m256i high = _mm512_castsi512_si256(_mm512_permutex2var_epi32(part[2], pick, part[3]));
    planes[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
}

[[gnu::always_inline]] inline __m512i minus_128_sums(__m512i a, __m512i b) {
  const __m512i ones = _mm512_set1_epi8(1);
  const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, a), ones, b);
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 7));
}

// The factors of 256 values: natural.h has their definition.
[[gnu::always_inline]] inline void scales_of_32(const float* values, float* to_code, float* scale) {
  for (int b = 0; b < 8; ++b) {
    const __m512i bits = largest_bits(largest_bits(_mm512_setzero_si512(), values + 32 * b), values + 32 * b + 16);
    const float d = __builtin_bit_cast(float, _mm512_reduce_max_epi32(bits)) / 127.0f;
    to_code[b] = d > 0.0f ? 1.0f / d : 0.0f;
    scale[2 * b] = __builtin_bit_cast(float, round_scale_bits(__builtin_bit_cast(std::uint32_t, d)));
    scale[2 * b + 1] = scale[2 * b];
  }
}

[[gnu::always_inline]] inline void scale_of_256(const float* values, float* to_code, float* scale) {
  __m512i bits = _mm512_setzero_si512();
  for (int v = 0; v < 16; ++v) bits = largest_bits(bits, values + 16 * v);
  const float largest = __builtin_bit_cast(float, _mm512_reduce_max_epi32(bits));
  const bool nothing = largest < 1e-36f;
  const float factor = nothing ? 0.0f : 127.0f / largest;
  for (int b = 0; b < 8; ++b) to_code[b] = factor;
  for (int i = 0; i < 16; ++i) scale[i] = nothing ? 0.0f : 1.0f / factor;
}

// Writes 256 values that are all there.
inline void prepare_planar_unit(InputForm form, const float* values, PlanarUnit& unit) {
  float to_code[8];
  if (form == InputForm::kBlocks32) {
    scales_of_32(values, to_code, unit.scale);
  } else {
    scale_of_256(values, to_code, unit.scale);
  }
  std::int8_t codes[256];
  round_unit(values, to_code, codes);
  __m512i planes[4];
  if (form == InputForm::kQuads256) {
    to_quads(codes, planes);
  } else {
    to_planes(codes, planes);
  }
  for (int i = 0; i < 4; ++i) std::memcpy(unit.codes[i], &planes[i], sizeof planes[i]);
  __m512i offsets[2] = {minus_128_sums(planes[0], planes[1]), minus_128_sums(planes[2], planes[3])};
  if (form != InputForm::kBlocks256) {
    offsets[0] = _mm512_add_epi32(offsets[0], offsets[1]);
    offsets[1] = _mm512_setzero_si512();
  }
  std::memcpy(unit.offsets, offsets, sizeof offsets);
}

inline void prepare_planar(InputForm form, const float* row, std::size_t cols, std::byte* into) {
  for (std::size_t first = 0; first < cols; first += kUnitValues) {
    const std::size_t here = smaller(cols - first, kUnitValues);
    float padded[kUnitValues] = {};
    if (here < kUnitValues) std::memcpy(padded, row + first, here * sizeof(float));
    prepare_planar_unit(form, here < kUnitValues ? padded : row + first, *reinterpret_cast<PlanarUnit*>(into));
    into += sizeof(PlanarUnit);
  }
}

[[gnu::always_inline]] inline const PlanarUnit& planar_unit(const Tile& tile, std::size_t input, std::size_t unit) {
  return static_cast<const PlanarUnit*>(tile.inputs[input])[unit];
}

}  // namespace
}  // namespace moestream::cpu
