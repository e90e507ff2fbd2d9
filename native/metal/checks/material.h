// Random inputs and the comparison of results.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "../../cpu/operands.h"
#include "../kernels/arguments.h"
#include "runner.h"

namespace moestream::gpu {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  std::uint64_t word();
  std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>((word() >> 32) % bound); }
  // From -1 to 1.
  float number();
  std::vector<float> numbers(std::size_t count, float size = 1.0f);

 private:
  std::uint64_t state_;
};

// A matrix of random blocks whose scales are numbers below 1.
struct RandomMatrix {
  RandomMatrix(cpu::TensorType type, std::size_t cols, std::size_t rows, Random& random);

  cpu::Matrix matrix() const { return {type, cols, rows, bytes.data()}; }
  std::vector<float> dequantised() const;  // (rows, cols)

  cpu::TensorType type;
  std::size_t cols;
  std::size_t rows;
  std::vector<std::uint8_t> bytes;
};

// Bytes before the codes, the scales and the biases of an affine matrix.
struct ArraySkews {
  std::uint32_t codes = 0;
  std::uint32_t scales = 0;
  std::uint32_t biases = 0;

  std::uint32_t packed() const { return codes | scales << 8 | biases << 16; }  // as AffineArguments has them
};

// A matrix of an affine type: random codes, scales and biases in arrays that end with the word of their last byte.
struct RandomAffine {
  RandomAffine(cpu::TensorType type, std::size_t cols, std::size_t rows, const ArraySkews& skews, Random& random);

  std::uint32_t group_shift() const;
  std::vector<float> dequantised() const;                         // (rows, cols)
  std::vector<float> times(const std::vector<float>& x) const;    // (inputs, cols) to (inputs, rows)

  cpu::TensorType type;
  std::size_t cols;
  std::size_t rows;
  ArraySkews skews;
  std::vector<std::uint8_t> codes;   // (rows, cols * bits / 8) behind the skew
  std::vector<std::uint8_t> scales;  // (rows, cols / group), bfloat16
  std::vector<std::uint8_t> biases;
};

// Random bits that are blocks of the type.
void fill_blocks(cpu::TensorType type, std::span<std::uint8_t> bytes, Random& random);

// The type's name in entry names.
std::string lower_name(cpu::TensorType type);

// The largest difference as a part of the largest expected value.
double distance(std::span<const float> found, std::span<const float> expected);

// 0 when the bytes are the same, else infinite.
template <class Value>
double same_bits(const std::vector<Value>& found, const std::vector<Value>& expected) {
  const bool same = found.size() == expected.size() &&
                    std::memcmp(found.data(), expected.data(), found.size() * sizeof(Value)) == 0;
  return same ? 0.0 : std::numeric_limits<double>::infinity();
}

template <class Value>
Bound bound(std::uint32_t index, std::vector<Value>& values) {
  return {index, std::as_writable_bytes(std::span(values))};
}

// Inputs: the kernel only reads them.
template <class Value>
Bound bound(std::uint32_t index, const std::vector<Value>& values) {
  return bound(index, const_cast<std::vector<Value>&>(values));
}

template <class Arguments>
Bound bound_arguments(std::uint32_t index, Arguments& arguments) {
  return {index, std::as_writable_bytes(std::span(&arguments, 1))};
}

inline std::uint32_t groups_of(std::size_t count, std::uint32_t each) {
  return static_cast<std::uint32_t>((count + each - 1) / each);
}

}  // namespace moestream::gpu
