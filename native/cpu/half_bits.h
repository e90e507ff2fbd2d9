// Floats as half floats. Integer arithmetic in an unnamed namespace: compiled with any instruction set, the same bits.
#pragma once

#include <cstdint>

namespace moestream::cpu {
namespace {

// The nearest half float, ties to even; beyond 65519 infinity, and every NaN becomes the same.
[[gnu::always_inline]] inline std::uint16_t round_to_half(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Half floats below 2^-14 are multiples of 2^-24, which is the last bit of floats in [0.5, 1).
  const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
  const std::uint32_t subnormal = __builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  std::uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<std::uint16_t>(half | (bits >> 16 & 0x8000u));
}

}  // namespace
}  // namespace moestream::cpu
