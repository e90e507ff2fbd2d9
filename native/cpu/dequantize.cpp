// Plain floats and the blocks of 32 with one scale: value = quant * d, or quant * d + m.
#include "dequantize.h"

#include "block_fields.h"
#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

void dequantize_f32(const std::uint8_t* blocks, float* out, std::size_t values) {
  std::memcpy(out, blocks, values * sizeof(float));
}

void dequantize_f16(const std::uint8_t* blocks, float* out, std::size_t values) {
  for (std::size_t i = 0; i < values; ++i) out[i] = load_half(blocks + 2 * i);
}

void dequantize_bf16(const std::uint8_t* blocks, float* out, std::size_t values) {
  for (std::size_t i = 0; i < values; ++i) out[i] = load_bfloat(blocks + 2 * i);
}

// d f16 | q i8[32]
void block_q8_0(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<std::int8_t>(block[2 + i])) * d;
}

// d f16 | q nibbles[16]; the low nibbles are the first half of the block, here and in the next three
void block_q4_0(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint8_t* quants = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((quants[i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((quants[i] >> 4) - 8) * d;
  }
}

// d f16 | m f16 | q nibbles[16]
void block_q4_1(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const std::uint8_t* quants = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(quants[i] & 15) * d + m;
    out[i + 16] = static_cast<float>(quants[i] >> 4) * d + m;
  }
}

// The fifth bits of a block stand together in one word, bit i for value i.
int fifth_bit(std::uint32_t bits, int index) { return static_cast<int>((bits >> index) & 1u) << 4; }

// d f16 | fifth bits u32 | q nibbles[16]
void block_q5_0(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const std::uint32_t high = load_u32(block + 2);
  const std::uint8_t* quants = block + 6;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(((quants[i] & 15) | fifth_bit(high, i)) - 16) * d;
    out[i + 16] = static_cast<float>(((quants[i] >> 4) | fifth_bit(high, i + 16)) - 16) * d;
  }
}

// d f16 | m f16 | fifth bits u32 | q nibbles[16]
void block_q5_1(const std::uint8_t* block, float* __restrict out) {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const std::uint32_t high = load_u32(block + 4);
  const std::uint8_t* quants = block + 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((quants[i] & 15) | fifth_bit(high, i)) * d + m;
    out[i + 16] = static_cast<float>((quants[i] >> 4) | fifth_bit(high, i + 16)) * d + m;
  }
}

}  // namespace

RowDequantizer row_dequantizer(TensorType type) {
  switch (type) {
    case TensorType::F32: return dequantize_f32;
    case TensorType::F16: return dequantize_f16;
    case TensorType::BF16: return dequantize_bf16;
    case TensorType::Q8_0: return dequantize_blocks<block_q8_0, 32, 34>;
    case TensorType::Q4_0: return dequantize_blocks<block_q4_0, 32, 18>;
    case TensorType::Q4_1: return dequantize_blocks<block_q4_1, 32, 20>;
    case TensorType::Q5_0: return dequantize_blocks<block_q5_0, 32, 22>;
    case TensorType::Q5_1: return dequantize_blocks<block_q5_1, 32, 24>;
    case TensorType::Q2_K: return dequantize_q2_k;
    case TensorType::Q3_K: return dequantize_q3_k;
    case TensorType::Q4_K: return dequantize_q4_k;
    case TensorType::Q5_K: return dequantize_q5_k;
    case TensorType::Q6_K: return dequantize_q6_k;
    case TensorType::IQ2_XXS: return dequantize_iq2_xxs;
    case TensorType::IQ2_XS: return dequantize_iq2_xs;
    case TensorType::IQ2_S: return dequantize_iq2_s;
    case TensorType::IQ3_XXS: return dequantize_iq3_xxs;
    case TensorType::IQ3_S: return dequantize_iq3_s;
    case TensorType::IQ4_NL: return dequantize_iq4_nl;
    case TensorType::IQ4_XS: return dequantize_iq4_xs;
    case TensorType::MXFP4: return dequantize_mxfp4;
  }
  fail_invariant("a tensor type in use is a supported one", std::source_location::current());
}

}  // namespace moestream::cpu
