// Reading bytes, for files that are compiled with an instruction set of their own.
//
// Everything is in an unnamed namespace and nothing from the standard library is called but memcpy: a function that the
// linker could share between files would carry one set's instructions into code that runs without them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moestream::cpu {
namespace {

template <class Value>
[[gnu::always_inline]] inline Value load_as(const void* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Asks for the cache lines that stand kAheadBytes behind `bytes` bytes. Weights are read once, several rows at a time,
// which the hardware's own prefetching follows badly: a core reads 4 to 8 GB/s without this and 9 to 13 with it. May
// point beyond what there is to read.
constexpr std::size_t kAheadBytes = 8192;

[[gnu::always_inline]] inline void fetch_ahead(const std::uint8_t* from, std::size_t bytes) {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(from) + kAheadBytes;
  for (std::size_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(first + line));
  }
}

[[gnu::always_inline]] inline std::size_t smaller(std::size_t a, std::size_t b) { return a < b ? a : b; }

// Widens a half float exactly, as block_fields.h does and as the hardware conversions do.
[[gnu::always_inline]] inline float half_at(const std::uint8_t* from) {
  const std::uint32_t half = load_as<std::uint16_t>(from);
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  const float finite = __builtin_bit_cast(float, magnitude) * 0x1.0p+112f;
  const std::uint32_t bits =
      magnitude >= 0x7c00u << 13 ? magnitude | 0x7f800000u : __builtin_bit_cast(std::uint32_t, finite);
  return __builtin_bit_cast(float, bits | (half & 0x8000u) << 16);
}

// The bits of a scale rounded to 11 significant bits: a half float, but of any exponent. Formats keep the scales of 32
// activations as halves; below 6e-5 those lose precision and below 6e-8 everything, which rounding alone does not.
[[gnu::always_inline]] inline std::uint32_t round_scale_bits(std::uint32_t bits) {
  const bool finite = bits < 0x7f800000u;
  return finite ? (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu : bits;
}

}  // namespace
}  // namespace moestream::cpu
