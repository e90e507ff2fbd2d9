// The products of products.h for instruction sets whose dot product ends in one integer.
//
// `Isa` unpacks and gives the integer sums. A block is unpacked once for all inputs of the tile.
#pragma once

#include "floats.h"
#include "natural.h"
#include "unpack.h"

namespace moestream::cpu {
namespace {

template <TensorType kType, class Isa>
void multiply_super(const Tile& tile) {
  using Format = SuperFormat<kType>;
  SuperBlock block;
  for (std::size_t r = 0; r < tile.rows; ++r) {
    float sums[kTileInputs] = {};
    const std::uint8_t* at = tile.weights + r * tile.row_bytes;
    for (std::size_t k = 0; k < tile.cols / 256; ++k, at += Format::kBytes) {
      fetch_ahead(at, Format::kBytes);
      Isa::template unpack<kType>(at, block);
      for (std::size_t t = 0; t < tile.input_count; ++t) {
        const NaturalUnit& unit = natural_unit(tile, t, k);
        float value = static_cast<float>(Isa::template scaled<kType>(block.codes, block.scales, unit.codes)) * block.d;
        if constexpr (Format::kMins) {
          value -= static_cast<float>(Isa::minimum(block.mins, unit.sums)) * block.dmin;
        }
        sums[t] += value * unit.scale[0];
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) tile.out[t * tile.rows + r] = sums[t];
  }
}

[[gnu::always_inline]] inline float sum_of_eight(const float* lanes) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = lanes[i] + lanes[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <TensorType kType, class Isa>
void multiply_blocks(const Tile& tile) {
  using Format = BlockFormat<kType>;
  const std::size_t blocks = tile.cols / 32;
  EightBlocks eight{};
  for (std::size_t r = 0; r < tile.rows; ++r) {
    float lanes[kTileInputs][8] = {};
    const std::uint8_t* at = tile.weights + r * tile.row_bytes;
    for (std::size_t k = 0; 8 * k < blocks; ++k, at += 8 * Format::kBytes) {
      const std::size_t count = smaller(8, blocks - 8 * k);
      fetch_ahead(at, 8 * Format::kBytes);
      Isa::template unpack_blocks<kType>(at, count, eight);
      for (std::size_t t = 0; t < tile.input_count; ++t) {
        const NaturalUnit& unit = natural_unit(tile, t, k);
        std::int32_t sums[8];
        Isa::eight(eight.codes, unit.codes, sums);
        for (int b = 0; b < 8; ++b) {
          float value = static_cast<float>(sums[b]) * eight.d[b];
          if constexpr (Format::kMins) {
            value += static_cast<float>(unit.sums[2 * b] + unit.sums[2 * b + 1]) * eight.m[b];
          }
          lanes[t][b] += value * unit.scale[b];
        }
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) tile.out[t * tile.rows + r] = sum_of_eight(lanes[t]);
  }
}

template <int kBits, std::size_t kGroup, class Isa>
void multiply_affine(const Tile& tile) {
  constexpr std::size_t kBytes = 4 * kBits;  // of 32 codes
  const std::size_t blocks = tile.cols / 32;
  EightBlocks eight{};
  for (std::size_t r = 0; r < tile.rows; ++r) {
    float lanes[kTileInputs][8] = {};
    const std::uint8_t* at = tile.weights + r * tile.row_bytes;
    for (std::size_t k = 0; 8 * k < blocks; ++k, at += 8 * kBytes) {
      const std::size_t count = smaller(8, blocks - 8 * k);
      const std::size_t side = r * tile.side_row_bytes + k * (2 * 256 / kGroup);
      fetch_ahead(at, 8 * kBytes);
      for (std::size_t b = 0; b < count; ++b) Isa::template unpack_affine<kBits>(at + b * kBytes, eight.codes + 32 * b);
      spread_factors<kGroup>(tile.scales + side, count, eight.d);
      spread_factors<kGroup>(tile.biases + side, count, eight.m);
      for (std::size_t t = 0; t < tile.input_count; ++t) {
        const NaturalUnit& unit = natural_unit(tile, t, k);
        std::int32_t sums[8];
        Isa::eight(eight.codes, unit.codes, sums);
        for (int b = 0; b < 8; ++b) {
          const std::int32_t all = unit.sums[2 * b] + unit.sums[2 * b + 1];
          float value = static_cast<float>(sums[b] + kAffineOffset<kBits> * all) * eight.d[b];
          value += static_cast<float>(all) * eight.m[b];
          lanes[t][b] += value * unit.scale[b];
        }
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) tile.out[t * tile.rows + r] = sum_of_eight(lanes[t]);
  }
}

template <int kBits, class Isa>
TypeKernel affine_of_group(unsigned group) {
  switch (group) {
    case 32: return {InputForm::kBlocks32, multiply_affine<kBits, 32, Isa>};
    case 64: return {InputForm::kBlocks32, multiply_affine<kBits, 64, Isa>};
    default: return {InputForm::kBlocks32, multiply_affine<kBits, 128, Isa>};
  }
}

template <class Isa>
TypeKernel affine_kernel(Affine affine) {
  switch (affine.bits) {
    case 2: return affine_of_group<2, Isa>(affine.group);
    case 3: return affine_of_group<3, Isa>(affine.group);
    case 4: return affine_of_group<4, Isa>(affine.group);
    case 5: return affine_of_group<5, Isa>(affine.group);
    case 6: return affine_of_group<6, Isa>(affine.group);
    default: return affine_of_group<8, Isa>(affine.group);
  }
}

template <class Isa>
TypeKernel one_sum_kernel(TensorType type) {
  if (is_affine(type)) return affine_kernel<Isa>(affine_of(type));
  switch (type) {
    case TensorType::F32: return {InputForm::kFloats, multiply_floats<LoadF32>};
    case TensorType::F16: return {InputForm::kFloats, multiply_floats<LoadF16>};
    case TensorType::BF16: return {InputForm::kFloats, multiply_floats<LoadBf16>};
    case TensorType::Q8_0: return {InputForm::kBlocks32, multiply_blocks<TensorType::Q8_0, Isa>};
    case TensorType::Q4_0: return {InputForm::kBlocks32, multiply_blocks<TensorType::Q4_0, Isa>};
    case TensorType::Q4_1: return {InputForm::kBlocks32, multiply_blocks<TensorType::Q4_1, Isa>};
    case TensorType::Q5_0: return {InputForm::kBlocks32, multiply_blocks<TensorType::Q5_0, Isa>};
    case TensorType::Q5_1: return {InputForm::kBlocks32, multiply_blocks<TensorType::Q5_1, Isa>};
    case TensorType::IQ4_NL: return {InputForm::kBlocks32, multiply_blocks<TensorType::IQ4_NL, Isa>};
    case TensorType::MXFP4: return {InputForm::kBlocks32, multiply_blocks<TensorType::MXFP4, Isa>};
    case TensorType::Q2_K: return {InputForm::kBlocks256, multiply_super<TensorType::Q2_K, Isa>};
    case TensorType::Q3_K: return {InputForm::kBlocks256, multiply_super<TensorType::Q3_K, Isa>};
    case TensorType::Q4_K: return {InputForm::kBlocks256, multiply_super<TensorType::Q4_K, Isa>};
    case TensorType::Q5_K: return {InputForm::kBlocks256, multiply_super<TensorType::Q5_K, Isa>};
    case TensorType::Q6_K: return {InputForm::kBlocks256, multiply_super<TensorType::Q6_K, Isa>};
    case TensorType::IQ2_XXS: return {InputForm::kBlocks256, multiply_super<TensorType::IQ2_XXS, Isa>};
    case TensorType::IQ2_XS: return {InputForm::kBlocks256, multiply_super<TensorType::IQ2_XS, Isa>};
    case TensorType::IQ2_S: return {InputForm::kBlocks256, multiply_super<TensorType::IQ2_S, Isa>};
    case TensorType::IQ3_XXS: return {InputForm::kBlocks256, multiply_super<TensorType::IQ3_XXS, Isa>};
    case TensorType::IQ3_S: return {InputForm::kBlocks256, multiply_super<TensorType::IQ3_S, Isa>};
    case TensorType::IQ4_XS: return {InputForm::kBlocks256, multiply_super<TensorType::IQ4_XS, Isa>};
  }
  return {};
}

}  // namespace
}  // namespace moestream::cpu
