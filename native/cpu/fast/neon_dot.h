// Integer sums with the dot product instructions of 64-bit Arm.
//
// SDOT multiplies signed bytes and adds four at a time, so codes need no offset and no sign trick. Unpacking is the
// plain C++ of unpack.h, which compilers vectorise for the formats without a codebook.
#pragma once

#include <arm_neon.h>

#include "one_sum.h"

namespace moestream::cpu {
namespace {

// 16 products in four lanes.
[[gnu::always_inline]] inline int32x4_t dot16(int32x4_t sum, const std::int8_t* codes, const std::int8_t* input) {
  return vdotq_s32(sum, vld1q_s8(codes), vld1q_s8(input));
}

struct Neon {
  template <TensorType kType>
  [[gnu::always_inline]] static void unpack(const std::uint8_t* from, SuperBlock& block) {
    SuperFormat<kType>::unpack(from, block);
  }

  template <TensorType kType>
  [[gnu::always_inline]] static void unpack_blocks(const std::uint8_t* from, std::size_t count, EightBlocks& blocks) {
    unpack_eight<kType>(from, count, blocks);
  }

  template <int kBits>
  static void unpack_affine(const std::uint8_t* from, std::int8_t* codes) {
    unpack_affine_block<kBits>(from, codes);
  }

  template <TensorType>
  [[gnu::always_inline]] static std::int32_t scaled(const std::int8_t* codes, const std::int16_t* scales,
                                                    const std::int8_t* input) {
    int32x4_t even = vdupq_n_s32(0);
    int32x4_t odd = vdupq_n_s32(0);
    for (int s = 0; s < 16; s += 2) {
      const int32x4_t first = dot16(vdupq_n_s32(0), codes + 16 * s, input + 16 * s);
      const int32x4_t second = dot16(vdupq_n_s32(0), codes + 16 * s + 16, input + 16 * s + 16);
      even = vmlaq_n_s32(even, first, scales[s]);
      odd = vmlaq_n_s32(odd, second, scales[s + 1]);
    }
    return vaddvq_s32(vaddq_s32(even, odd));
  }

  [[gnu::always_inline]] static std::int32_t minimum(const std::int16_t* mins, const std::int16_t* sums) {
    int32x4_t total = vdupq_n_s32(0);
    for (int s = 0; s < 16; s += 4) total = vmlal_s16(total, vld1_s16(mins + s), vld1_s16(sums + s));
    return vaddvq_s32(total);
  }

  [[gnu::always_inline]] static void eight(const std::int8_t* codes, const std::int8_t* input, std::int32_t* sums) {
    int32x4_t part[8];
    for (int b = 0; b < 8; ++b) {
      part[b] = dot16(vdupq_n_s32(0), codes + 32 * b, input + 32 * b);
      part[b] = dot16(part[b], codes + 32 * b + 16, input + 32 * b + 16);
    }
    for (int h = 0; h < 2; ++h) {
      const int32x4_t low = vpaddq_s32(part[4 * h], part[4 * h + 1]);
      const int32x4_t high = vpaddq_s32(part[4 * h + 2], part[4 * h + 3]);
      vst1q_s32(sums + 4 * h, vpaddq_s32(low, high));
    }
  }
};

}  // namespace
}  // namespace moestream::cpu
