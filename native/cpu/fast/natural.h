// Activations in 8 bits in their own order of values, for every instruction set that needs no other.
//
// An absolute maximum is taken over the bits of the floats, where a NaN is larger than any number: it then reaches the
// scale, and through it every output, instead of being rounded to some code.
#pragma once

#include "fields.h"
#include "products.h"

namespace moestream::cpu {
namespace {

// 256 values; `scale` has one per 32 in kBlocks32, and eight times the same one in kBlocks256. Values that a row does
// not have are 0.
struct alignas(64) NaturalUnit {
  std::int8_t codes[256];
  std::int16_t sums[16];  // of 16 codes each
  float scale[8];
};
static_assert(sizeof(NaturalUnit) <= kUnitBytes);

[[gnu::always_inline]] inline float largest_magnitude(const float* values, std::size_t count) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t bits = __builtin_bit_cast(std::int32_t, values[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return __builtin_bit_cast(float, largest);
}

// What values are multiplied with to become codes, and what codes are multiplied with to become values.
struct CodeScale {
  float to_code;
  float to_value;
};

[[gnu::always_inline]] inline CodeScale scale_of_32(float largest) {
  const float d = largest / 127.0f;
  const std::uint32_t rounded = round_scale_bits(__builtin_bit_cast(std::uint32_t, d));
  return {d > 0.0f ? 1.0f / d : 0.0f, __builtin_bit_cast(float, rounded)};
}

[[gnu::always_inline]] inline CodeScale scale_of_256(float largest) {
  // Below this its inverse would be infinite.
  if (largest < 1e-36f) return {0.0f, 0.0f};
  const float to_code = 127.0f / largest;
  return {to_code, 1.0f / to_code};
}

// Rounds to nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits of the sum.
[[gnu::always_inline]] inline void round_codes(const float* values, std::size_t count, float to_code,
                                               std::int8_t* codes) {
  for (std::size_t i = 0; i < count; ++i) {
    const float shifted = values[i] * to_code + 0x1.8p+23f;
    codes[i] = static_cast<std::int8_t>(__builtin_bit_cast(std::uint32_t, shifted) & 0xffu);
  }
}

[[gnu::always_inline]] inline void prepare_natural_unit(InputForm form, const float* values, std::size_t count,
                                                        NaturalUnit& unit) {
  const std::size_t block = form == InputForm::kBlocks32 ? 32 : 256;
  for (std::size_t first = 0; first < 256; first += block) {
    const std::size_t here = first < count ? smaller(block, count - first) : 0;
    const float largest = largest_magnitude(values + first, here);
    const CodeScale scale = block == 32 ? scale_of_32(largest) : scale_of_256(largest);
    round_codes(values + first, here, scale.to_code, unit.codes + first);
    for (std::size_t i = here; i < block; ++i) unit.codes[first + i] = 0;
    for (std::size_t b = 0; b < block / 32; ++b) unit.scale[first / 32 + b] = scale.to_value;
  }
  for (std::size_t s = 0; s < 16; ++s) {
    int sum = 0;
    for (std::size_t i = 0; i < 16; ++i) sum += unit.codes[16 * s + i];
    unit.sums[s] = static_cast<std::int16_t>(sum);
  }
}

inline void prepare_natural(InputForm form, const float* row, std::size_t cols, std::byte* into) {
  for (std::size_t first = 0; first < cols; first += kUnitValues) {
    NaturalUnit unit;
    prepare_natural_unit(form, row + first, smaller(cols - first, kUnitValues), unit);
    std::memcpy(into, &unit, sizeof unit);
    into += sizeof unit;
  }
}

[[gnu::always_inline]] inline const NaturalUnit& natural_unit(const Tile& tile, std::size_t input, std::size_t unit) {
  return static_cast<const NaturalUnit*>(tile.inputs[input])[unit];
}

}  // namespace
}  // namespace moestream::cpu
