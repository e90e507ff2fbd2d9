// The products in plain C++: what other processors run, and what the vector versions are compared with.
#include "one_sum.h"
#include "sets.h"

namespace moestream::cpu {
namespace {

struct Portable {
  template <TensorType kType>
  static void unpack(const std::uint8_t* from, SuperBlock& block) {
    SuperFormat<kType>::unpack(from, block);
  }

  template <TensorType kType>
  static void unpack_blocks(const std::uint8_t* from, std::size_t count, EightBlocks& blocks) {
    unpack_eight<kType>(from, count, blocks);
  }

  template <int kBits>
  static void unpack_affine(const std::uint8_t* from, std::int8_t* codes) {
    unpack_affine_block<kBits>(from, codes);
  }

  template <TensorType>
  static std::int32_t scaled(const std::int8_t* codes, const std::int16_t* scales, const std::int8_t* input) {
    std::int32_t sum = 0;
    for (int s = 0; s < 16; ++s) {
      std::int32_t part = 0;
      for (int i = 0; i < 16; ++i) part += codes[16 * s + i] * input[16 * s + i];
      sum += part * scales[s];
    }
    return sum;
  }

  static std::int32_t minimum(const std::int16_t* mins, const std::int16_t* sums) {
    std::int32_t sum = 0;
    for (int s = 0; s < 16; ++s) sum += mins[s] * sums[s];
    return sum;
  }

  static void eight(const std::int8_t* codes, const std::int8_t* input, std::int32_t* sums) {
    for (int b = 0; b < 8; ++b) {
      std::int32_t sum = 0;
      for (int i = 0; i < 32; ++i) sum += codes[32 * b + i] * input[32 * b + i];
      sums[b] = sum;
    }
  }
};

}  // namespace

const ProductKernels kPortableProducts{"portable", prepare_natural, one_sum_kernel<Portable>, gate_values};

}  // namespace moestream::cpu
