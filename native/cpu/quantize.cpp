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

// Eight floats at a time, in the compiler's own vectors: the search below is most of the time of a requantised model.
constexpr std::size_t kLanes = 8;
constexpr std::size_t kVectors = 4;
using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using Block = std::array<Vector, kVectors>;  // 32 values

Block load_block(const float* from) {
  Block block;
  std::memcpy(block.data(), from, sizeof block);
  return block;
}

float sum(Vector lanes) {
  float total = 0;
  for (std::size_t i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

// To the nearest whole number, ties to even, between the bounds: beyond 1.5 * 2^23 floats have no fractions.
Vector rounded(Vector values, float low, float high) {
  const Vector above = values < low ? Vector{} + low : values;
  const Vector inside = above > high ? Vector{} + high : above;
  return (inside + 0x1.8p23f) - 0x1.8p23f;
}

int clamped_round(float value, int low, int high) {
  return static_cast<int>(rounded(Vector{} + value, static_cast<float>(low), static_cast<float>(high))[0]);
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
  static Vector nearest(Vector scaled) { return rounded(scaled, -8, 7); }
  static int code(float scaled) { return clamped_round(scaled, -8, 7) + 8; }
};

struct CodebookLevels {
  static constexpr float kLowest = kValuesIq4[0];

  // Between level c and the one above it.
  static constexpr float border(std::size_t c) {
    return (static_cast<float>(kValuesIq4[c]) + static_cast<float>(kValuesIq4[c + 1])) / 2;
  }

  static Vector nearest(Vector scaled) {
    Vector level = Vector{} + static_cast<float>(kValuesIq4[0]);
    for (std::size_t c = 0; c < 15; ++c) {
      level = scaled > border(c) ? Vector{} + static_cast<float>(kValuesIq4[c + 1]) : level;
    }
    return level;
  }

  static int code(float scaled) {
    int code = 0;
    for (std::size_t c = 0; c < 15; ++c) code += scaled > border(c) ? 1 : 0;
    return code;
  }
};

// The scale with the least squared error among those that put the largest value near an end of the levels. For given codes
// the best scale is sum(x * level) / sum(level^2), and what it explains of the squares is sum(x * level)^2 / sum(level^2).
template <class Levels>
float best_scale(std::span<const float> values) {
  constexpr int kSteps = 7;
  constexpr float kStep = 0.04f;
  const float extreme = *std::max_element(values.begin(), values.end(),
                                          [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  if (extreme == 0) return 0;
  const Block block = load_block(values.data());
  float best = extreme / Levels::kLowest;
  float explained = -1;
  for (const float sign : {1.0f, -1.0f}) {
    for (int step = -kSteps; step <= kSteps; ++step) {
      const float inverse = sign * Levels::kLowest * (1.0f + kStep * static_cast<float>(step)) / extreme;
      Vector products{};
      Vector squares{};
      for (const Vector& value : block) {
        const Vector level = Levels::nearest(value * inverse);
        products += value * level;
        squares += level * level;
      }
      const float product = sum(products);
      const float square = sum(squares);
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

// Sums over a block, each value with its weight.
struct Moments {
  double w, wx, wxx;
};

struct CodeMoments {
  double wq, wqq, wqx;
};

CodeMoments code_moments(const Block& values, const Block& weights, float floor, float inverse) {
  Vector wq{};
  Vector wqq{};
  Vector wqx{};
  for (std::size_t v = 0; v < kVectors; ++v) {
    const Vector code = rounded((values[v] - floor) * inverse, 0, kCodesMax);
    const Vector weighted = weights[v] * code;
    wq += weighted;
    wqq += weighted * code;
    wqx += weighted * values[v];
  }
  return {sum(wq), sum(wqq), sum(wqx)};
}

struct Fit {
  Line line;
  double error;
};

// The line of least squares through given codes, and what it leaves.
Fit fit_line(const Moments& x, const CodeMoments& q) {
  const double determinant = x.w * q.wqq - q.wq * q.wq;
  if (determinant <= 0) return {{}, -1};
  double scale = (x.w * q.wqx - q.wq * x.wx) / determinant;
  double minimum = (q.wq * q.wqx - q.wqq * x.wx) / determinant;
  if (minimum < 0) {
    minimum = 0;
    scale = q.wqx / q.wqq;
  }
  const double error = x.wxx - 2 * scale * q.wqx + 2 * minimum * x.wx + scale * scale * q.wqq -
                       2 * scale * minimum * q.wq + minimum * minimum * x.w;
  return {{static_cast<float>(scale), static_cast<float>(minimum)}, scale > 0 ? std::max(error, 0.0) : -1};
}

// The line with the least weighted squared error; large values weigh more, as they do in a product.
Line best_line(std::span<const float, 32> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const float floor = std::min(0.0f, *low);
  const float range = *high - floor;
  if (range <= 0) return {0, -floor};
  const Block block = load_block(values.data());
  Vector squares{};
  for (const Vector& value : block) squares += value * value;
  const float rms = std::sqrt(sum(squares) / 32);
  Block weights;
  Vector w{};
  Vector wx{};
  Vector wxx{};
  for (std::size_t v = 0; v < kVectors; ++v) {
    weights[v] = rms + (block[v] < 0 ? -block[v] : block[v]);
    w += weights[v];
    wx += weights[v] * block[v];
    wxx += weights[v] * block[v] * block[v];
  }
  const Moments moments{sum(w), sum(wx), sum(wxx)};
  Line best{range / kCodesMax, -floor};
  double least = -1;
  for (int step = -6; step <= 14; ++step) {
    const float inverse = (kCodesMax + 0.1f * static_cast<float>(step)) / range;
    const Fit fit = fit_line(moments, code_moments(block, weights, floor, inverse));
    if (fit.error < 0 || (least >= 0 && fit.error >= least)) continue;
    least = fit.error;
    best = fit.line;
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
