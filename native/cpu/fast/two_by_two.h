// The products of products.h for instruction sets that multiply two rows with two inputs at once.
//
// `Isa` is one of one_sum.h that also has `Codes`, two rows' codes as its instruction wants them, and the integer sums of
// a pair of rows with a pair of inputs. Those sums are the same integers, and every output goes through the same float
// operations in the same order as in one_sum.h, so it has the same bits. A last row or input without a partner is its
// own: what that computes twice is written once. One input alone would waste half of every instruction, so it is left to
// one_sum.h.
#pragma once

#include "one_sum.h"

namespace moestream::cpu {
namespace {

// Two rows of a tile; the same one twice where there is no other.
struct RowPair {
  std::size_t first;
  std::size_t second;
};

[[gnu::always_inline]] inline RowPair rows_from(const Tile& tile, std::size_t first) {
  return {first, smaller(first + 1, tile.rows - 1)};
}

[[gnu::always_inline]] inline std::size_t partner_of(const Tile& tile, std::size_t input) {
  return smaller(input + 1, tile.input_count - 1);
}

template <TensorType kType, class Isa>
void multiply_super_pairs(const Tile& tile) {
  using Format = SuperFormat<kType>;
  if (tile.input_count == 1) return multiply_super<kType, Isa>(tile);
  SuperBlock blocks[2];
  typename Isa::Codes codes;
  for (std::size_t r = 0; r < tile.rows; r += 2) {
    const RowPair rows = rows_from(tile, r);
    float sums[2][kTileInputs + 1] = {};
    for (std::size_t k = 0; k < tile.cols / 256; ++k) {
      for (std::size_t i = 0; i < 2; ++i) {
        const std::uint8_t* at =
            tile.weights + (i == 0 ? rows.first : rows.second) * tile.row_bytes + k * Format::kBytes;
        fetch_ahead(at, Format::kBytes);
        Isa::template unpack<kType>(at, blocks[i]);
      }
      codes.interleave(blocks[0].codes, blocks[1].codes);
      for (std::size_t t = 0; t < tile.input_count; t += 2) {
        const NaturalUnit* const units[2] = {&natural_unit(tile, t, k), &natural_unit(tile, partner_of(tile, t), k)};
        std::int32_t found[4];  // (rows, inputs)
        Isa::scaled_pair(codes, blocks[0].scales, blocks[1].scales, units[0]->codes, units[1]->codes, found);
        for (std::size_t i = 0; i < 2; ++i) {
          for (std::size_t j = 0; j < 2; ++j) {
            float value = static_cast<float>(found[2 * i + j]) * blocks[i].d;
            if constexpr (Format::kMins) {
              value -= static_cast<float>(Isa::minimum(blocks[i].mins, units[j]->sums)) * blocks[i].dmin;
            }
            sums[i][t + j] += value * units[j]->scale[0];
          }
        }
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) {
      tile.out[t * tile.rows + rows.first] = sums[0][t];
      tile.out[t * tile.rows + rows.second] = sums[rows.second - rows.first][t];
    }
  }
}

// What is left of one input with one row, block by block, when its integer sums are known.
template <TensorType kType>
[[gnu::always_inline]] inline void add_blocks(const std::int32_t* sums, const EightBlocks& eight,
                                              const NaturalUnit& unit, float* lanes) {
  for (int b = 0; b < 8; ++b) {
    float value = static_cast<float>(sums[b]) * eight.d[b];
    if constexpr (BlockFormat<kType>::kMins) {
      value += static_cast<float>(unit.sums[2 * b] + unit.sums[2 * b + 1]) * eight.m[b];
    }
    lanes[b] += value * unit.scale[b];
  }
}

template <TensorType kType, class Isa>
void multiply_block_pairs(const Tile& tile) {
  using Format = BlockFormat<kType>;
  if (tile.input_count == 1) return multiply_blocks<kType, Isa>(tile);
  const std::size_t blocks = tile.cols / 32;
  EightBlocks eight[2]{};
  typename Isa::Codes codes;
  for (std::size_t r = 0; r < tile.rows; r += 2) {
    const RowPair rows = rows_from(tile, r);
    float lanes[2][kTileInputs + 1][8] = {};
    for (std::size_t k = 0; 8 * k < blocks; ++k) {
      const std::size_t count = smaller(8, blocks - 8 * k);
      for (std::size_t i = 0; i < 2; ++i) {
        const std::uint8_t* at =
            tile.weights + (i == 0 ? rows.first : rows.second) * tile.row_bytes + k * 8 * Format::kBytes;
        fetch_ahead(at, 8 * Format::kBytes);
        Isa::template unpack_blocks<kType>(at, count, eight[i]);
      }
      codes.interleave(eight[0].codes, eight[1].codes);
      for (std::size_t t = 0; t < tile.input_count; t += 2) {
        const NaturalUnit& one = natural_unit(tile, t, k);
        const NaturalUnit& other = natural_unit(tile, partner_of(tile, t), k);
        std::int32_t sums[4][8];  // (rows, inputs) of eight blocks
        Isa::eight_pair(codes, one.codes, other.codes, sums);
        for (std::size_t i = 0; i < 2; ++i) {
          add_blocks<kType>(sums[2 * i], eight[i], one, lanes[i][t]);
          add_blocks<kType>(sums[2 * i + 1], eight[i], other, lanes[i][t + 1]);
        }
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) {
      tile.out[t * tile.rows + rows.first] = sum_of_eight(lanes[0][t]);
      tile.out[t * tile.rows + rows.second] = sum_of_eight(lanes[rows.second - rows.first][t]);
    }
  }
}

// Affine types have no pairs of their own and go through one_sum.h.
template <class Isa>
TypeKernel two_by_two_kernel(TensorType type) {
  if (is_affine(type)) return affine_kernel<Isa>(affine_of(type));
  switch (type) {
    case TensorType::Q8_0: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::Q8_0, Isa>};
    case TensorType::Q4_0: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::Q4_0, Isa>};
    case TensorType::Q4_1: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::Q4_1, Isa>};
    case TensorType::Q5_0: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::Q5_0, Isa>};
    case TensorType::Q5_1: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::Q5_1, Isa>};
    case TensorType::IQ4_NL: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::IQ4_NL, Isa>};
    case TensorType::MXFP4: return {InputForm::kBlocks32, multiply_block_pairs<TensorType::MXFP4, Isa>};
    case TensorType::Q2_K: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::Q2_K, Isa>};
    case TensorType::Q3_K: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::Q3_K, Isa>};
    case TensorType::Q4_K: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::Q4_K, Isa>};
    case TensorType::Q5_K: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::Q5_K, Isa>};
    case TensorType::Q6_K: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::Q6_K, Isa>};
    case TensorType::IQ2_XXS: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ2_XXS, Isa>};
    case TensorType::IQ2_XS: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ2_XS, Isa>};
    case TensorType::IQ2_S: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ2_S, Isa>};
    case TensorType::IQ3_XXS: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ3_XXS, Isa>};
    case TensorType::IQ3_S: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ3_S, Isa>};
    case TensorType::IQ4_XS: return {InputForm::kBlocks256, multiply_super_pairs<TensorType::IQ4_XS, Isa>};
    default: return one_sum_kernel<Isa>(type);
  }
}

}  // namespace
}  // namespace moestream::cpu
