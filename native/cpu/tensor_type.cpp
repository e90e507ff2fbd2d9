// The table behind tensor_type.h: GGUF's 21 types with the block sizes that the format defines, and the affine ones.
#include "tensor_type.h"

#include <algorithm>
#include <array>

#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

constexpr std::array<TypeTraits, 39> kTypes{{
    {TensorType::F32, "F32", 1, 4},
    {TensorType::F16, "F16", 1, 2},
    {TensorType::BF16, "BF16", 1, 2},
    {TensorType::Q8_0, "Q8_0", 32, 34},
    {TensorType::Q4_0, "Q4_0", 32, 18},
    {TensorType::Q4_1, "Q4_1", 32, 20},
    {TensorType::Q5_0, "Q5_0", 32, 22},
    {TensorType::Q5_1, "Q5_1", 32, 24},
    {TensorType::IQ4_NL, "IQ4_NL", 32, 18},
    {TensorType::MXFP4, "MXFP4", 32, 17},
    {TensorType::Q2_K, "Q2_K", 256, 84},
    {TensorType::Q3_K, "Q3_K", 256, 110},
    {TensorType::Q4_K, "Q4_K", 256, 144},
    {TensorType::Q5_K, "Q5_K", 256, 176},
    {TensorType::Q6_K, "Q6_K", 256, 210},
    {TensorType::IQ2_XXS, "IQ2_XXS", 256, 66},
    {TensorType::IQ2_XS, "IQ2_XS", 256, 74},
    {TensorType::IQ2_S, "IQ2_S", 256, 82},
    {TensorType::IQ3_XXS, "IQ3_XXS", 256, 98},
    {TensorType::IQ3_S, "IQ3_S", 256, 110},
    {TensorType::IQ4_XS, "IQ4_XS", 256, 136},
    {affine_type(2, 32), "AFFINE2_G32", 32, 8, 2},
    {affine_type(2, 64), "AFFINE2_G64", 64, 16, 2},
    {affine_type(2, 128), "AFFINE2_G128", 128, 32, 2},
    {affine_type(3, 32), "AFFINE3_G32", 32, 12, 2},
    {affine_type(3, 64), "AFFINE3_G64", 64, 24, 2},
    {affine_type(3, 128), "AFFINE3_G128", 128, 48, 2},
    {affine_type(4, 32), "AFFINE4_G32", 32, 16, 2},
    {affine_type(4, 64), "AFFINE4_G64", 64, 32, 2},
    {affine_type(4, 128), "AFFINE4_G128", 128, 64, 2},
    {affine_type(5, 32), "AFFINE5_G32", 32, 20, 2},
    {affine_type(5, 64), "AFFINE5_G64", 64, 40, 2},
    {affine_type(5, 128), "AFFINE5_G128", 128, 80, 2},
    {affine_type(6, 32), "AFFINE6_G32", 32, 24, 2},
    {affine_type(6, 64), "AFFINE6_G64", 64, 48, 2},
    {affine_type(6, 128), "AFFINE6_G128", 128, 96, 2},
    {affine_type(8, 32), "AFFINE8_G32", 32, 32, 2},
    {affine_type(8, 64), "AFFINE8_G64", 64, 64, 2},
    {affine_type(8, 128), "AFFINE8_G128", 128, 128, 2},
}};

}  // namespace

std::span<const TypeTraits> supported_types() { return kTypes; }

const TypeTraits* find_type(std::uint32_t id) {
  const auto id_of = [](const TypeTraits& each) { return static_cast<std::uint32_t>(each.type); };
  const auto found = std::ranges::find(kTypes, id, id_of);
  return found == kTypes.end() ? nullptr : &*found;
}

const TypeTraits& traits_of(TensorType type) {
  const TypeTraits* traits = find_type(static_cast<std::uint32_t>(type));
  invariant(traits != nullptr, "a tensor type in use is a supported one");
  return *traits;
}

std::size_t row_bytes(TensorType type, std::size_t cols) {
  const TypeTraits& traits = traits_of(type);
  invariant(cols % traits.block_values == 0, "a row is a whole number of blocks");
  return cols / traits.block_values * traits.block_bytes;
}

std::size_t side_row_bytes(TensorType type, std::size_t cols) {
  const TypeTraits& traits = traits_of(type);
  return cols / traits.block_values * traits.side_bytes;
}

}  // namespace moestream::cpu
