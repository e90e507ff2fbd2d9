// The products for 64-bit Arm with the 8-bit matrix instructions (Armv8.6: Apple M2, Graviton 3 and later).
//
// SMMLA multiplies 2 x 8 codes with 8 x 2 and adds to four sums: twice the products of SDOT per instruction, for two
// rows and two inputs. So it is for prompts and batches; a single input goes the way of neon_dot.h.
#include "neon_dot.h"
#include "sets.h"
#include "two_by_two.h"

namespace moestream::cpu {
namespace {

// Eights of two rows in turns: what one SMMLA takes.
[[gnu::always_inline]] inline int8x16x2_t eights_of(const std::int8_t* one, const std::int8_t* other) {
  const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(one));
  const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(other));
  return {{vreinterpretq_s8_s64(vzip1q_s64(first, second)), vreinterpretq_s8_s64(vzip2q_s64(first, second))}};
}

struct NeonI8mm : Neon {
  // 256 codes of two rows, eights in turns.
  struct alignas(64) Codes {
    std::int8_t values[512];

    void interleave(const std::int8_t* one, const std::int8_t* other) {
      for (int s = 0; s < 16; ++s) vst1q_s8_x2(values + 32 * s, eights_of(one + 16 * s, other + 16 * s));
    }

    // 16 codes of both rows times those of two inputs, added to (rows, inputs).
    int32x4_t times(int s, const std::int8_t* one, const std::int8_t* other, int32x4_t sums) const {
      const int8x16x2_t mine = vld1q_s8_x2(values + 32 * s);
      const int8x16x2_t theirs = eights_of(one + 16 * s, other + 16 * s);
      return vmmlaq_s32(vmmlaq_s32(sums, mine.val[0], theirs.val[0]), mine.val[1], theirs.val[1]);
    }
  };

  [[gnu::always_inline]] static void scaled_pair(const Codes& codes, const std::int16_t* first_scales,
                                                 const std::int16_t* second_scales, const std::int8_t* one,
                                                 const std::int8_t* other, std::int32_t* sums) {
    int32x4_t total = vdupq_n_s32(0);
    for (int s = 0; s < 16; ++s) {
      const int32x4_t scale = vcombine_s32(vdup_n_s32(first_scales[s]), vdup_n_s32(second_scales[s]));
      total = vmlaq_s32(total, codes.times(s, one, other, vdupq_n_s32(0)), scale);
    }
    vst1q_s32(sums, total);
  }

  [[gnu::always_inline]] static void eight_pair(const Codes& codes, const std::int8_t* one, const std::int8_t* other,
                                                std::int32_t (*sums)[8]) {
    for (int b = 0; b < 8; ++b) {
      const int32x4_t found = codes.times(2 * b + 1, one, other, codes.times(2 * b, one, other, vdupq_n_s32(0)));
      vst1q_lane_s32(sums[0] + b, found, 0);
      vst1q_lane_s32(sums[1] + b, found, 1);
      vst1q_lane_s32(sums[2] + b, found, 2);
      vst1q_lane_s32(sums[3] + b, found, 3);
    }
  }
};

}  // namespace

const ProductKernels kNeonI8mmProducts{"neon-i8mm", prepare_natural, two_by_two_kernel<NeonI8mm>, gate_values};

}  // namespace moestream::cpu
