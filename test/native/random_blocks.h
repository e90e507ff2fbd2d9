// Random weights in any type, for tests and benchmarks of kernels.
//
// Any bits are valid codes; only the half floats in a block must be numbers, and small ones, so that sums stay finite.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "../../native/cpu/tensor_type.h"

namespace moestream::test {

inline std::uint64_t next_word(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state ^ (state >> 33);
}

// Uniform in [-1, 1).
inline float next_float(std::uint64_t& state) {
  return static_cast<float>(static_cast<std::int32_t>(next_word(state) >> 32)) / 2147483648.0f;
}

// Where a block has its half floats.
inline std::vector<std::size_t> half_float_offsets(cpu::TensorType type) {
  using cpu::TensorType;
  switch (type) {
    case TensorType::Q4_1:
    case TensorType::Q5_1:
    case TensorType::Q4_K:
    case TensorType::Q5_K: return {0, 2};
    case TensorType::Q2_K: return {80, 82};
    case TensorType::Q3_K: return {108};
    case TensorType::Q6_K: return {208};
    case TensorType::F32: return {2};
    case TensorType::MXFP4: return {};
    default: return {0};
  }
}

// Fills whole blocks, in affine types all codes, then all scales, then all biases; the rest of `bytes`, if any, is random.
inline void fill_blocks(std::span<std::uint8_t> bytes, const cpu::TypeTraits& type, std::uint64_t seed) {
  std::size_t at = 0;
  for (; at + sizeof(std::uint64_t) <= bytes.size(); at += sizeof(std::uint64_t)) {
    const std::uint64_t word = next_word(seed);
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
  for (; at < bytes.size(); ++at) bytes[at] = static_cast<std::uint8_t>(next_word(seed) >> 40);
  if (cpu::is_affine(type.type)) {
    // Scales and biases are bfloat16 numbers below 1 of either sign.
    const std::size_t blocks = bytes.size() / (type.block_bytes + 2 * type.side_bytes);
    for (at = blocks * type.block_bytes; at + sizeof(std::uint16_t) <= bytes.size(); at += sizeof(std::uint16_t)) {
      const std::uint64_t word = next_word(seed);
      const auto bfloat = static_cast<std::uint16_t>((word >> 63) << 15 | (0x3b00u + ((word >> 40) & 0xffu)));
      std::memcpy(bytes.data() + at, &bfloat, sizeof bfloat);
    }
    return;
  }
  const std::vector<std::size_t> fields = half_float_offsets(type.type);
  for (at = 0; at + type.block_bytes <= bytes.size(); at += type.block_bytes) {
    for (const std::size_t field : fields) {
      const std::uint16_t half = static_cast<std::uint16_t>(0x2800u + (next_word(seed) >> 54));  // 0.03 to 0.06
      std::memcpy(bytes.data() + at + field, &half, sizeof half);
    }
    if (type.type == cpu::TensorType::MXFP4) bytes[at] = static_cast<std::uint8_t>(120 + bytes[at] % 8);
  }
}

}  // namespace moestream::test
