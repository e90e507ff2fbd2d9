#include "material.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "../../cpu/dequantize.h"
#include "../../cpu/vector_kernels.h"

namespace moestream::gpu {

std::uint64_t Random::word() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return state_ ^ (state_ >> 33);
}

float Random::number() { return static_cast<float>(static_cast<std::int32_t>(word() >> 32)) / 2147483648.0f; }

std::vector<float> Random::numbers(std::size_t count, float size) {
  std::vector<float> values(count);
  for (float& each : values) each = number() * size;
  return values;
}

namespace {

// Where a block keeps its half floats.
std::vector<std::size_t> half_floats(cpu::TensorType type) {
  using cpu::TensorType;
  switch (type) {
    case TensorType::Q4_1:
    case TensorType::Q5_1:
    case TensorType::Q4_K:
    case TensorType::Q5_K: return {0, 2};
    case TensorType::Q2_K: return {80, 82};
    case TensorType::Q3_K: return {108};
    case TensorType::Q6_K: return {208};
    case TensorType::MXFP4: return {};
    default: return {0};
  }
}

template <class Word>
void fill_numbers(std::span<std::uint8_t> bytes, Random& random, Word (*of)(float)) {
  for (std::size_t at = 0; at + sizeof(Word) <= bytes.size(); at += sizeof(Word)) {
    const Word word = of(random.number());
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}

std::uint32_t bits_of(float value) { return __builtin_bit_cast(std::uint32_t, value); }
std::uint16_t bfloat_of(float value) { return static_cast<std::uint16_t>(bits_of(value) >> 16); }

// Rounds towards zero; small numbers become zero.
std::uint16_t half_of(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::int32_t exponent = static_cast<std::int32_t>(bits >> 23 & 255u) - 112;
  if (exponent <= 0) return 0;
  return static_cast<std::uint16_t>(bits >> 16 & 0x8000u) | static_cast<std::uint16_t>(exponent << 10) |
         static_cast<std::uint16_t>(bits >> 13 & 0x3ffu);
}

}  // namespace

void fill_blocks(cpu::TensorType type, std::span<std::uint8_t> bytes, Random& random) {
  using cpu::TensorType;
  if (type == TensorType::F32) return fill_numbers<std::uint32_t>(bytes, random, bits_of);
  if (type == TensorType::F16) return fill_numbers<std::uint16_t>(bytes, random, half_of);
  if (type == TensorType::BF16) return fill_numbers<std::uint16_t>(bytes, random, bfloat_of);
  for (std::uint8_t& each : bytes) each = static_cast<std::uint8_t>(random.word() >> 40);
  const std::size_t block_bytes = cpu::traits_of(type).block_bytes;
  const std::vector<std::size_t> fields = half_floats(type);
  for (std::size_t at = 0; at < bytes.size(); at += block_bytes) {
    for (const std::size_t field : fields) {
      const auto half = static_cast<std::uint16_t>(0x2800u + (random.word() >> 54));
      std::memcpy(bytes.data() + at + field, &half, sizeof half);
    }
    if (type == TensorType::MXFP4) bytes[at] = static_cast<std::uint8_t>(120 + bytes[at] % 8);
  }
}

RandomMatrix::RandomMatrix(cpu::TensorType of_type, std::size_t of_cols, std::size_t of_rows, Random& random)
    : type(of_type), cols(of_cols), rows(of_rows), bytes(of_rows * cpu::row_bytes(of_type, of_cols)) {
  fill_blocks(type, bytes, random);
}

std::vector<float> RandomMatrix::dequantised() const {
  std::vector<float> values(rows * cols);
  cpu::row_dequantizer(type)(bytes.data(), values.data(), values.size());
  return values;
}

namespace {

// Bytes that belong to others stand before the skew's end.
std::vector<std::uint8_t> array_of(std::size_t bytes, std::uint32_t skew) {
  return std::vector<std::uint8_t>((skew + bytes + kAffineAlign - 1) / kAffineAlign * kAffineAlign, 0xff);
}

}  // namespace

RandomAffine::RandomAffine(cpu::TensorType of_type, std::size_t of_cols, std::size_t of_rows, const ArraySkews& of_skews,
                           Random& random)
    : type(of_type),
      cols(of_cols),
      rows(of_rows),
      skews(of_skews),
      codes(array_of(of_rows * cpu::row_bytes(of_type, of_cols), of_skews.codes)),
      scales(array_of(of_rows * cpu::side_row_bytes(of_type, of_cols), of_skews.scales)),
      biases(array_of(of_rows * cpu::side_row_bytes(of_type, of_cols), of_skews.biases)) {
  const std::size_t side_bytes = rows * cpu::side_row_bytes(type, cols);
  for (std::uint8_t& each : std::span(codes).subspan(skews.codes, rows * cpu::row_bytes(type, cols))) {
    each = static_cast<std::uint8_t>(random.word() >> 40);
  }
  fill_blocks(cpu::TensorType::BF16, std::span(scales).subspan(skews.scales, side_bytes), random);
  fill_blocks(cpu::TensorType::BF16, std::span(biases).subspan(skews.biases, side_bytes), random);
}

std::uint32_t RandomAffine::group_shift() const {
  return static_cast<std::uint32_t>(std::countr_zero(cpu::affine_of(type).group));
}

std::vector<float> RandomAffine::dequantised() const {
  std::vector<float> values(rows * cols);
  cpu::affine_dequantizer(cpu::affine_of(type))(codes.data() + skews.codes, scales.data() + skews.scales,
                                                biases.data() + skews.biases, values.data(), values.size());
  return values;
}

std::vector<float> RandomAffine::times(const std::vector<float>& x) const {
  const std::vector<float> weights = dequantised();
  std::vector<float> y(x.size() / cols * rows);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = cpu::vector_kernels().dot(weights.data() + i % rows * cols, x.data() + i / rows * cols, cols);
  }
  return y;
}

std::string lower_name(cpu::TensorType type) {
  if (cpu::is_affine(type)) return "affine" + std::to_string(cpu::affine_of(type).bits);
  std::string name(cpu::traits_of(type).name);
  std::ranges::transform(name, name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return name;
}

double distance(std::span<const float> found, std::span<const float> expected) {
  double largest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::abs(double{expected[i]}));
    difference = std::max(difference, std::abs(double{found[i]} - double{expected[i]}));
  }
  return largest == 0 ? difference : difference / largest;
}

}  // namespace moestream::gpu
