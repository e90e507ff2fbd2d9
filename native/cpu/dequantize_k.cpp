// The K family: super-blocks of 256 values with 4 to 6 bit scales per 16 or 32 values.
#include "block_fields.h"
#include "dequantize.h"

namespace moestream::cpu {
namespace {

// Q2_K and Q3_K keep four 2-bit planes of 32 values in each 32 bytes: this is where 16 values stand together.
struct Plane {
  int byte;
  int shift;
};

Plane plane_of(int sixteenth) { return {32 * (sixteenth / 8) + 16 * (sixteenth % 2), 2 * (sixteenth % 8 / 2)}; }

// scales u8[16] (low nibble scale, high nibble minimum) | q 2 bit[256] | d f16 | dmin f16
void block_q2_k(const std::uint8_t* block, float* __restrict out) {
  const std::uint8_t* quants = block + 16;
  const float d = load_half(block + 80);
  const float dmin = load_half(block + 82);
  for (int s = 0; s < 16; ++s) {
    const float scale = d * static_cast<float>(block[s] & 15);
    const float minimum = dmin * static_cast<float>(block[s] >> 4);
    const Plane plane = plane_of(s);
    for (int i = 0; i < 16; ++i) {
      out[16 * s + i] = scale * static_cast<float>((quants[plane.byte + i] >> plane.shift) & 3) - minimum;
    }
  }
}

// high bits[32] | q 2 bit[256] | scales 6 bit[16] | d f16
void block_q3_k(const std::uint8_t* block, float* __restrict out) {
  const std::uint8_t* high = block;
  const std::uint8_t* quants = block + 32;
  const std::uint8_t* scales = block + 96;
  const float d = load_half(block + 108);
  for (int s = 0; s < 16; ++s) {
    const int low4 = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
    const int high2 = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
    const float scale = d * static_cast<float>((low4 | high2 << 4) - 32);
    const Plane plane = plane_of(s);
    for (int i = 0; i < 16; ++i) {
      const int low = (quants[plane.byte + i] >> plane.shift) & 3;
      const int offset = (high[16 * (s % 2) + i] >> (s / 2)) & 1 ? 0 : 4;
      out[16 * s + i] = scale * static_cast<float>(low - offset);
    }
  }
}

struct ScaleAndMinimum {
  float scale;
  float minimum;
};

// Eight 6-bit scales and minimums in 12 bytes: the first four plain, the others split over nibbles and spare bits.
ScaleAndMinimum scale_of(const std::uint8_t* packed, int b) {
  if (b < 4) return {static_cast<float>(packed[b] & 63), static_cast<float>(packed[b + 4] & 63)};
  return {static_cast<float>((packed[b + 4] & 15) | (packed[b - 4] >> 6) << 4),
          static_cast<float>((packed[b + 4] >> 4) | (packed[b] >> 6) << 4)};
}

// d f16 | dmin f16 | scales 6 bit[16] | q nibbles[128]; 32 bytes hold two sub-blocks of 32, low nibbles first
void block_q4_k(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const float dmin = load_half(block + 2);
  for (int b = 0; b < 8; ++b) {
    const ScaleAndMinimum packed = scale_of(block + 4, b);
    const float scale = d * packed.scale;
    const float minimum = dmin * packed.minimum;
    const std::uint8_t* quants = block + 16 + 32 * (b / 2);
    const int shift = 4 * (b % 2);
    for (int i = 0; i < 32; ++i) {
      out[32 * b + i] = scale * static_cast<float>((quants[i] >> shift) & 15) - minimum;
    }
  }
}

// As Q4_K with the fifth bit of value i of sub-block b in bit b of high[i].
void block_q5_k(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const float dmin = load_half(block + 2);
  const std::uint8_t* high = block + 16;
  for (int b = 0; b < 8; ++b) {
    const ScaleAndMinimum packed = scale_of(block + 4, b);
    const float scale = d * packed.scale;
    const float minimum = dmin * packed.minimum;
    const std::uint8_t* quants = block + 48 + 32 * (b / 2);
    const int shift = 4 * (b % 2);
    for (int i = 0; i < 32; ++i) {
      const int quant = ((quants[i] >> shift) & 15) | ((high[i] >> b) & 1) << 4;
      out[32 * b + i] = scale * static_cast<float>(quant) - minimum;
    }
  }
}

// low nibbles[128] | high 2 bit[64] | scales i8[16] | d f16
void block_q6_k(const std::uint8_t* block, float* __restrict out) {
  const std::uint8_t* scales = block + 192;
  const float d = load_half(block + 208);
  for (int s = 0; s < 16; ++s) {
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[s]));
    const int half = s / 8;
    const int quarter = s % 8 / 2;
    const int first = 16 * (s % 2);
    const std::uint8_t* low = block + 64 * half + 32 * (quarter & 1) + first;
    const std::uint8_t* high = block + 128 + 32 * half + first;
    for (int i = 0; i < 16; ++i) {
      const int low4 = (low[i] >> (4 * (quarter >> 1))) & 15;
      const int high2 = (high[i] >> (2 * quarter)) & 3;
      out[16 * s + i] = scale * static_cast<float>((low4 | high2 << 4) - 32);
    }
  }
}

}  // namespace

void dequantize_q2_k(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_q2_k, 256, 84>(blocks, out, values);
}

void dequantize_q3_k(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_q3_k, 256, 110>(blocks, out, values);
}

void dequantize_q4_k(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_q4_k, 256, 144>(blocks, out, values);
}

void dequantize_q5_k(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_q5_k, 256, 176>(blocks, out, values);
}

void dequantize_q6_k(const std::uint8_t* blocks, float* out, std::size_t values) {
  dequantize_blocks<block_q6_k, 256, 210>(blocks, out, values);
}

}  // namespace moestream::cpu
