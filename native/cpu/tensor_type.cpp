// The table behind tensor_type.h: 21 types, block sizes as the GGUF format defines them.
#include "tensor_type.h"

#include <algorithm>
#include <array>

#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

constexpr std::array<TypeTraits, 21> kTypes{{
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

}  // namespace moestream::cpu
