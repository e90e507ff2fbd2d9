// Codes of 2 to 8 bits as bytes: what MLX packs low bits first, without gaps, into words.
//
// Eight codes of n bits are n bytes, so eight of them are one load and three steps that halve the distance to their
// places. Nothing beyond the n bytes is read. Plain C++ in an unnamed namespace: compiled with any instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace moestream::cpu {
namespace {

// `value` repeated every `distance` bits.
constexpr std::uint64_t repeated(std::uint64_t value, int distance) {
  std::uint64_t all = 0;
  for (int at = 0; at < 64; at += distance) all |= value << at;
  return all;
}

// Moves the upper half of every field of `2 * kHalf` bits up, so that both halves begin `kApart` bits from each other.
template <int kHalf, int kApart, class Words>
[[gnu::always_inline]] inline Words part_halves(Words packed) {
  constexpr std::uint64_t kLow = repeated((std::uint64_t{1} << kHalf) - 1, 2 * kApart);
  return (packed & kLow) | (packed & (kLow << kHalf)) << (kApart - kHalf);
}

// Eight codes in the low 8 * kBits bits to eight bytes, in order; `Words` are 64 bits each. The bits above must be 0.
template <int kBits, class Words>
[[gnu::always_inline]] inline Words spread_codes(Words packed) {
  if constexpr (kBits == 8) return packed;
  const Words fours = part_halves<4 * kBits, 32>(packed);
  const Words pairs = part_halves<2 * kBits, 16>(fours);
  return part_halves<kBits, 8>(pairs);
}

template <int kBits>
[[gnu::always_inline]] inline std::uint64_t eight_codes(const std::uint8_t* from) {
  std::uint64_t packed = 0;
  std::memcpy(&packed, from, kBits);
  return spread_codes<kBits>(packed);
}

}  // namespace
}  // namespace moestream::cpu
