// The codebook family: values are entries of a fixed table times a scale, with signs stored apart.
#include <array>
#include <bit>

#include "block_fields.h"
#include "codebooks.h"
#include "dequantize.h"

namespace moestream::cpu {
namespace {

// The sign bits of four floats for each of the 16 choices of negative ones.
constexpr std::array<std::array<std::uint32_t, 4>, 16> sign_masks() {
  std::array<std::array<std::uint32_t, 4>, 16> masks{};
  for (std::uint32_t choice = 0; choice < masks.size(); ++choice) {
    for (std::uint32_t j = 0; j < 4; ++j) masks[choice][j] = ((choice >> j) & 1u) << 31;
  }
  return masks;
}

constexpr auto kSignMasks = sign_masks();

using FourFloats = float __attribute__((vector_size(16)));
using FourWords = std::uint32_t __attribute__((vector_size(16)));

// Bit j of `signs` set makes value j negative. Four values at a time, without a branch on a random bit.
template <std::size_t kValues>
void write_signed(const std::array<float, kValues>& magnitudes, std::uint32_t signs, float scale,
                  float* __restrict out) {
  for (std::size_t four = 0; four < kValues; four += 4) {
    FourFloats values;
    FourWords mask;
    std::memcpy(&values, &magnitudes[four], sizeof values);
    std::memcpy(&mask, &kSignMasks[(signs >> four) & 15u], sizeof mask);
    const FourWords bits = std::bit_cast<FourWords>(values * scale) ^ mask;
    std::memcpy(out + four, &bits, sizeof bits);
  }
}

// Eight signs are stored in seven bits: their number of minuses is even, which gives the eighth.
constexpr std::array<std::uint8_t, 128> all_eight_signs() {
  std::array<std::uint8_t, 128> signs{};
  for (std::uint32_t seven = 0; seven < 128; ++seven) {
    const std::uint32_t odd = static_cast<std::uint32_t>(std::popcount(seven)) & 1u;
    signs[seven] = static_cast<std::uint8_t>(seven | odd << 7);
  }
  return signs;
}

constexpr auto kEightSigns = all_eight_signs();

int nibble(std::uint8_t byte, int which) { return (byte >> (4 * which)) & 15; }

// d f16 | 8 x { index u8[4] | signs 4x7 bit, scale 4 bit u32 }
void block_iq2_xxs(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  for (int b = 0; b < 8; ++b) {
    const std::uint8_t* indices = block + 2 + 8 * b;
    const std::uint32_t packed = load_u32(indices + 4);
    const float scale = d * (0.5f + static_cast<float>(packed >> 28)) * 0.25f;
    for (int g = 0; g < 4; ++g) {
      write_signed(kGridIq2Xxs[indices[g]], kEightSigns[(packed >> (7 * g)) & 127u], scale, out + 32 * b + 8 * g);
    }
  }
}

// d f16 | { index 9 bit, signs 7 bit } u16[32] | scales nibbles[8]
void block_iq2_xs(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint8_t* scales = block + 66;
  for (int b = 0; b < 8; ++b) {
    for (int g = 0; g < 4; ++g) {
      const std::uint32_t packed = load_u16(block + 2 + 8 * b + 2 * g);
      const float scale = d * (0.5f + static_cast<float>(nibble(scales[b], g / 2))) * 0.25f;
      write_signed(kGridIq2Xs[packed & 511u], kEightSigns[packed >> 9], scale, out + 32 * b + 8 * g);
    }
  }
}

// d f16 | index low u8[32] | signs u8[32] | index high 2 bit[32] | scales nibbles[8]
void block_iq2_s(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint8_t* low = block + 2;
  const std::uint8_t* signs = block + 34;
  const std::uint8_t* high = block + 66;
  const std::uint8_t* scales = block + 74;
  for (int b = 0; b < 8; ++b) {
    for (int g = 0; g < 4; ++g) {
      const int index = low[4 * b + g] | ((high[b] >> (2 * g)) & 3) << 8;
      const float scale = d * (0.5f + static_cast<float>(nibble(scales[b], g / 2))) * 0.25f;
      write_signed(kGridIq2S[index], signs[4 * b + g], scale, out + 32 * b + 8 * g);
    }
  }
}

// d f16 | index u8[64] | { signs 4x7 bit, scale 4 bit } u32[8]
void block_iq3_xxs(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint8_t* indices = block + 2;
  for (int b = 0; b < 8; ++b) {
    const std::uint32_t packed = load_u32(block + 66 + 4 * b);
    const float scale = d * (0.5f + static_cast<float>(packed >> 28)) * 0.5f;
    for (int g = 0; g < 4; ++g) {
      const std::uint32_t signs = kEightSigns[(packed >> (7 * g)) & 127u];
      float* group = out + 32 * b + 8 * g;
      write_signed(kGridIq3Xxs[indices[8 * b + 2 * g]], signs, scale, group);
      write_signed(kGridIq3Xxs[indices[8 * b + 2 * g + 1]], signs >> 4, scale, group + 4);
    }
  }
}

// d f16 | index low u8[64] | index high 1 bit[64] | signs u8[32] | scales nibbles[4]
void block_iq3_s(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint8_t* low = block + 2;
  const std::uint8_t* high = block + 66;
  const std::uint8_t* signs = block + 74;
  const std::uint8_t* scales = block + 106;
  for (int b = 0; b < 8; ++b) {
    const float scale = d * static_cast<float>(1 + 2 * nibble(scales[b / 2], b % 2));
    for (int m = 0; m < 8; ++m) {
      const int index = low[8 * b + m] | ((high[b] >> m) & 1) << 8;
      write_signed(kGridIq3S[index], static_cast<std::uint32_t>(signs[4 * b + m / 2] >> (4 * (m % 2))), scale,
                   out + 32 * b + 4 * m);
    }
  }
}

// 16 bytes of nibbles that index a table of 16 values; the low nibbles come first. Scaling the table once makes a value
// one load and one store.
void write_looked_up(const std::uint8_t* nibbles, const std::array<std::int8_t, 16>& table, float scale,
                     float* __restrict out) {
  std::array<float, 16> scaled;
  for (std::size_t i = 0; i < 16; ++i) scaled[i] = scale * static_cast<float>(table[i]);
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = scaled[nibbles[i] & 15];
    out[i + 16] = scaled[nibbles[i] >> 4];
  }
}

// d f16 | q nibbles[16]
void block_iq4_nl(const std::uint8_t* block, float* __restrict out) {
  write_looked_up(block + 2, kValuesIq4, load_half(block), out);
}

// d f16 | scales high 2 bit[8] | scales low nibbles[4] | q nibbles[128]
void block_iq4_xs(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint32_t high = load_u16(block + 2);
  for (int b = 0; b < 8; ++b) {
    const int scale = nibble(block[4 + b / 2], b % 2) | static_cast<int>((high >> (2 * b)) & 3u) << 4;
    write_looked_up(block + 8 + 16 * b, kValuesIq4, d * static_cast<float>(scale - 32), out + 32 * b);
  }
}

// exponent u8 | q nibbles[16]. The table holds doubled values, so the scale is 2^(exponent - 128); the two smallest
// exponents are subnormal in float32.
void block_mxfp4(const std::uint8_t* block, float* __restrict out) {
  const std::uint32_t exponent = block[0];
  const std::uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23;
  write_looked_up(block + 1, kValuesMxfp4, std::bit_cast<float>(bits), out);
}

}  // namespace

void dequantize_iq2_xxs(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq2_xxs, 256, 66>(blocks, out, values);
}

void dequantize_iq2_xs(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq2_xs, 256, 74>(blocks, out, values);
}

void dequantize_iq2_s(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq2_s, 256, 82>(blocks, out, values);
}

void dequantize_iq3_xxs(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq3_xxs, 256, 98>(blocks, out, values);
}

void dequantize_iq3_s(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq3_s, 256, 110>(blocks, out, values);
}

void dequantize_iq4_nl(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq4_nl, 32, 18>(blocks, out, values);
}

void dequantize_iq4_xs(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_iq4_xs, 256, 136>(blocks, out, values);
}

void dequantize_mxfp4(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_mxfp4, 32, 17>(blocks, out, values);
}

}  // namespace moestream::cpu
