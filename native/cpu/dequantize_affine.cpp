// MLX's affine types: value = code * scale + bias, one scale and one bias (bfloat16) per group.
//
// A code has at most 8 significant bits and a bfloat16 scale has 8, so their product is exact and only the addition
// rounds: fused or not, every implementation gets the same float32.
#include "affine_codes.h"
#include "block_fields.h"
#include "dequantize.h"
#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

template <int kBits, std::size_t kGroup>
void dequantize_affine(const std::uint8_t* codes, const std::uint8_t* scales, const std::uint8_t* biases, float* out,
                       std::size_t values) {
  for (std::size_t done = 0; done < values; done += kGroup, scales += 2, biases += 2) {
    const float scale = load_bfloat(scales);
    const float bias = load_bfloat(biases);
    for (std::size_t i = 0; i < kGroup; i += 8, codes += kBits) {
      const std::uint64_t eight = eight_codes<kBits>(codes);
      std::uint8_t bytes[8];
      std::memcpy(bytes, &eight, sizeof bytes);
      for (std::size_t j = 0; j < 8; ++j) out[done + i + j] = static_cast<float>(bytes[j]) * scale + bias;
    }
  }
}

template <int kBits>
AffineDequantizer of_group(unsigned group) {
  switch (group) {
    case 32: return dequantize_affine<kBits, 32>;
    case 64: return dequantize_affine<kBits, 64>;
    default: return dequantize_affine<kBits, 128>;
  }
}

}  // namespace

AffineDequantizer affine_dequantizer(Affine affine) {
  switch (affine.bits) {
    case 2: return of_group<2>(affine.group);
    case 3: return of_group<3>(affine.group);
    case 4: return of_group<4>(affine.group);
    case 5: return of_group<5>(affine.group);
    case 6: return of_group<6>(affine.group);
    case 8: return of_group<8>(affine.group);
    default: fail_invariant("an affine type in use is a supported one", std::source_location::current());
  }
}

}  // namespace moestream::cpu
