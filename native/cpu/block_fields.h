// Reading the fields of a quantised block.
//
// Blocks lie wherever a file put them, so a field may start at any byte: every load goes through memcpy, which costs
// nothing and is never undefined. Half floats are widened with integer arithmetic and one exact multiplication, which
// gives the same bits with and without hardware conversion.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace moestream::cpu {

static_assert(std::endian::native == std::endian::little, "model files are little endian and are read in place");

inline std::uint16_t load_u16(const std::uint8_t* from) {
  std::uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline std::uint32_t load_u32(const std::uint8_t* from) {
  std::uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  // The exponent fields differ in bias by 112; multiplying instead of adding makes subnormals come out normalised.
  const float finite = std::bit_cast<float>(magnitude) * 0x1.0p+112f;
  const bool special = magnitude >= 0x7c00u << 13;
  const std::uint32_t bits = special ? magnitude | 0x7f800000u : std::bit_cast<std::uint32_t>(finite);
  return std::bit_cast<float>(bits | sign);
}

inline float load_half(const std::uint8_t* from) { return half_to_float(load_u16(from)); }

inline float load_bfloat(const std::uint8_t* from) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(load_u16(from)) << 16);
}

}  // namespace moestream::cpu
