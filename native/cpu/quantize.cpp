#include "quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "block_fields.h"
#include "codebooks.h"
#include "half_bits.h"
#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

void store_u16(std::uint8_t* to, std::uint16_t value) { std::memcpy(to, &value, sizeof value); }

int clamped_round(float value, int low, int high) {
  return static_cast<int>(std::clamp(std::nearbyint(value), static_cast<float>(low), static_cast<float>(high)));
}

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

// d f16 | q i8[32]
void block_q8_0(std::span<const float> values, std::uint8_t* block) {
  const std::uint16_t half = round_to_half(largest_magnitude(values) / 127.0f);
  const float inverse = half == 0 ? 0.0f : 1.0f / half_to_float(half);
  store_u16(block, half);
  for (std::size_t i = 0; i < values.size(); ++i) {
    block[2 + i] = static_cast<std::uint8_t>(clamped_round(values[i] * inverse, -127, 127));
  }
}

// Levels of a 4-bit code: value = scale * level(code).
struct EvenLevels {
  static constexpr float kLowest = -8;
  static int code(float scaled) { return clamped_round(scaled, -8, 7) + 8; }
  static float level(int code) { return static_cast<float>(code - 8); }
};

struct CodebookLevels {
  static constexpr float kLowest = kValuesIq4[0];
  static int code(float scaled) {
    int nearest = 0;
    for (int c = 1; c < 16; ++c) {
      if (std::fabs(scaled - level(c)) < std::fabs(scaled - level(nearest))) nearest = c;
    }
    return nearest;
  }
  static float level(int code) { return kValuesIq4[static_cast<std::size_t>(code)]; }
};

// The scale with the least squared error among those that put the largest value near an end of the levels. For given codes
// the best scale is sum(x * level) / sum(level^2), and what it explains of the squares is sum(x * level)^2 / sum(level^2).
template <class Levels>
float best_scale(std::span<const float> values) {
  constexpr int kSteps = 12;
  constexpr float kStep = 0.025f;
  const auto extreme = *std::max_element(values.begin(), values.end(),
                                         [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  if (extreme == 0) return 0;
  float best = extreme / Levels::kLowest;
  float explained = -1;
  for (const float sign : {1.0f, -1.0f}) {
    for (int step = -kSteps; step <= kSteps; ++step) {
      const float inverse = sign * Levels::kLowest * (1.0f + kStep * static_cast<float>(step)) / extreme;
      float product = 0;
      float square = 0;
      for (const float value : values) {
        const float level = Levels::level(Levels::code(value * inverse));
        product += value * level;
        square += level * level;
      }
      if (square > 0 && product * product / square > explained) {
        explained = product * product / square;
        best = product / square;
      }
    }
  }
  return best;
}

// d f16 | q 4 bit[32]: value i in the low nibble of byte i, value 16 + i in the high one
template <class Levels>
void block_of_nibbles(std::span<const float> values, std::uint8_t* block) {
  const std::uint16_t half = round_to_half(best_scale<Levels>(values));
  const float scale = half_to_float(half);
  const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
  store_u16(block, half);
  for (std::size_t i = 0; i < 16; ++i) {
    const int low = Levels::code(values[i] * inverse);
    const int high = Levels::code(values[16 + i] * inverse);
    block[2 + i] = static_cast<std::uint8_t>(low | high << 4);
  }
}

// value = scale * code - minimum, both not negative
struct Line {
  float scale = 0;
  float minimum = 0;
};

constexpr int kCodesMax = 15;

// The line with the least weighted squared error; large values weigh more, as they do in a product.
Line best_line(std::span<const float, 32> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const float floor = std::min(0.0f, *low);
  const float range = *high - floor;
  if (range <= 0) return {0, -floor};
  float square_sum = 0;
  for (const float value : values) square_sum += value * value;
  const float rms = std::sqrt(square_sum / 32);
  Line best{range / kCodesMax, -floor};
  float least = -1;
  for (int step = -6; step <= 14; ++step) {
    const float inverse = (kCodesMax + 0.1f * static_cast<float>(step)) / range;
    double w = 0, wq = 0, wqq = 0, wx = 0, wqx = 0, wxx = 0;
    for (const float value : values) {
      const double weight = rms + std::fabs(value);
      const double code = clamped_round((value - floor) * inverse, 0, kCodesMax);
      w += weight;
      wq += weight * code;
      wqq += weight * code * code;
      wx += weight * value;
      wqx += weight * code * value;
      wxx += weight * value * value;
    }
    const double determinant = w * wqq - wq * wq;
    if (determinant <= 0) continue;
    double scale = (w * wqx - wq * wx) / determinant;
    double minimum = (wq * wqx - wqq * wx) / determinant;
    if (minimum < 0) {
      minimum = 0;
      scale = wqx / wqq;
    }
    const double error = wxx - 2 * scale * wqx + 2 * minimum * wx + scale * scale * wqq - 2 * scale * minimum * wq +
                         minimum * minimum * w;
    if (scale > 0 && (least < 0 || error < least)) {
      least = static_cast<float>(std::max(error, 0.0));
      best = {static_cast<float>(scale), static_cast<float>(minimum)};
    }
  }
  return best;
}

// Eight 6-bit scales and minimums in 12 bytes: the first four plain, the others split over nibbles and spare bits.
void store_scales(const std::array<int, 8>& scales, const std::array<int, 8>& minimums, std::uint8_t* packed) {
  for (std::size_t b = 0; b < 4; ++b) {
    packed[b] = static_cast<std::uint8_t>(scales[b] | (scales[b + 4] >> 4) << 6);
    packed[b + 4] = static_cast<std::uint8_t>(minimums[b] | (minimums[b + 4] >> 4) << 6);
    packed[b + 8] = static_cast<std::uint8_t>((scales[b + 4] & 15) | (minimums[b + 4] & 15) << 4);
  }
}

// d f16 | dmin f16 | scales and minimums 6 bit[16] | q 4 bit[256]: each 32 bytes hold two times 32 values
void block_q4_k(std::span<const float> values, std::uint8_t* block) {
  std::array<Line, 8> lines;
  for (std::size_t b = 0; b < 8; ++b) lines[b] = best_line(values.subspan(32 * b).first<32>());
  float scale_max = 0;
  float minimum_max = 0;
  for (const Line& line : lines) {
    scale_max = std::max(scale_max, line.scale);
    minimum_max = std::max(minimum_max, line.minimum);
  }
  const std::uint16_t d_half = round_to_half(scale_max / 63);
  const std::uint16_t m_half = round_to_half(minimum_max / 63);
  const float d = half_to_float(d_half);
  const float dmin = half_to_float(m_half);
  std::array<int, 8> scales;
  std::array<int, 8> minimums;
  for (std::size_t b = 0; b < 8; ++b) {
    scales[b] = d == 0 ? 0 : clamped_round(lines[b].scale / d, 0, 63);
    minimums[b] = dmin == 0 ? 0 : clamped_round(lines[b].minimum / dmin, 0, 63);
  }
  store_u16(block, d_half);
  store_u16(block + 2, m_half);
  store_scales(scales, minimums, block + 4);
  std::uint8_t* const codes = block + 16;
  std::fill_n(codes, 128, std::uint8_t{0});
  for (std::size_t b = 0; b < 8; ++b) {
    const float scale = d * static_cast<float>(scales[b]);
    const float minimum = dmin * static_cast<float>(minimums[b]);
    const float inverse = scale == 0 ? 0.0f : 1.0f / scale;
    for (std::size_t i = 0; i < 32; ++i) {
      const int code = clamped_round((values[32 * b + i] + minimum) * inverse, 0, kCodesMax);
      codes[32 * (b / 2) + i] |= static_cast<std::uint8_t>(code << (4 * (b % 2)));
    }
  }
}

std::uint16_t round_to_bfloat(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float bfloat(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

// As MLX does it: the end of the range with the larger magnitude is met exactly, and so is zero where the range holds it.
void group_affine(std::span<const float> values, unsigned bits, std::uint8_t* codes, std::uint8_t* scale_at,
                  std::uint8_t* bias_at) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const float steps = static_cast<float>((1u << bits) - 1);
  const bool from_low = std::fabs(*low) > std::fabs(*high);
  float scale = std::max((*high - *low) / steps, 1e-7f);
  if (!from_low) scale = -scale;
  const float edge = from_low ? *low : *high;
  const float zero = std::nearbyint(edge / scale);
  if (zero != 0) scale = edge / zero;
  const std::uint16_t scale_bits = round_to_bfloat(scale);
  const std::uint16_t bias_bits = round_to_bfloat(zero == 0 ? 0.0f : edge);
  store_u16(scale_at, scale_bits);
  store_u16(bias_at, bias_bits);
  const float s = bfloat(scale_bits);
  const float b = bfloat(bias_bits);
  std::fill_n(codes, values.size() * bits / 8, std::uint8_t{0});
  std::size_t at_bit = 0;
  for (const float value : values) {
    const auto code = static_cast<unsigned>(clamped_round((value - b) / s, 0, static_cast<int>(steps)));
    const unsigned shifted = code << (at_bit % 8);
    codes[at_bit / 8] |= static_cast<std::uint8_t>(shifted);
    if (at_bit % 8 + bits > 8) codes[at_bit / 8 + 1] |= static_cast<std::uint8_t>(shifted >> 8);
    at_bit += bits;
  }
}

void quantize_affine(Affine affine, std::span<const float> values, std::uint8_t* blocks) {
  const std::size_t groups = values.size() / affine.group;
  const std::size_t group_bytes = affine.group * affine.bits / 8;
  std::uint8_t* const scales = blocks + groups * group_bytes;
  std::uint8_t* const biases = scales + 2 * groups;
  for (std::size_t g = 0; g < groups; ++g) {
    group_affine(values.subspan(g * affine.group, affine.group), affine.bits, blocks + g * group_bytes, scales + 2 * g,
                 biases + 2 * g);
  }
}

using BlockQuantizer = void (*)(std::span<const float> values, std::uint8_t* block);

BlockQuantizer block_quantizer(TensorType type) {
  switch (type) {
    case TensorType::Q8_0: return block_q8_0;
    case TensorType::Q4_0: return block_of_nibbles<EvenLevels>;
    case TensorType::IQ4_NL: return block_of_nibbles<CodebookLevels>;
    case TensorType::Q4_K: return block_q4_k;
    default: return nullptr;
  }
}

}  // namespace

bool can_quantize(TensorType type) { return is_affine(type) || block_quantizer(type) != nullptr; }

void quantize(TensorType type, std::span<const float> values, std::span<std::uint8_t> blocks) {
  const TypeTraits& traits = traits_of(type);
  invariant(can_quantize(type) && values.size() % traits.block_values == 0, "whole blocks of a type that is written");
  const std::size_t count = values.size() / traits.block_values;
  invariant(blocks.size() == count * (traits.block_bytes + 2 * traits.side_bytes), "room for the blocks");
  if (is_affine(type)) return quantize_affine(affine_of(type), values, blocks.data());
  const BlockQuantizer block = block_quantizer(type);
  for (std::size_t b = 0; b < count; ++b) {
    block(values.subspan(b * traits.block_values, traits.block_values), blocks.data() + b * traits.block_bytes);
  }
}

}  // namespace moestream::cpu
