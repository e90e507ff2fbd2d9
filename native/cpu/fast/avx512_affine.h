// The affine types for AVX-512: packed codes, and scales and biases that stand apart.
//
// Eight codes of n bits are n bytes in a row. Byte permutations bring the bytes of every eight to one 64-bit word, in the
// order of PlanarUnit; one multishift takes the eight codes out of the word, whatever n is. Codes are used unsigned, so 8
// bits need no offset either.
#pragma once

#include "avx512_eights.h"

namespace moestream::cpu {
namespace {

// Which of 128 bytes, 64 from the beginning and 64 up to the end of `kWhole`, make word b of vector i: those at
// (4b + i) * kBits. With `kHalf`, words 4 to 7 repeat words 0 to 3.
template <int kBits, int kWhole, bool kHalf>
struct AffineOrder {
  alignas(64) std::uint8_t bytes[4][64] = {};

  constexpr AffineOrder() {
    for (int i = 0; i < 4; ++i) {
      for (int at = 0; at < 64; ++at) {
        const int word = kHalf ? at / 8 % 4 : at / 8;
        const int from = (4 * word + i) * kBits + (at % 8 < kBits ? at % 8 : 0);
        bytes[i][at] = static_cast<std::uint8_t>(from < 64 ? from : 64 + from - (kWhole - 64));
      }
    }
  }
};

// One word holds bytes of one eight; those it does not need are any.
template <int kBits>
[[gnu::always_inline]] inline void gather_words(const std::uint8_t* from, __m512i (&words)[4]) {
  if constexpr (kBits <= 4) {
    constexpr int kWhole = 32 * kBits;
    static constexpr AffineOrder<kBits, kWhole, false> kOrder;
    const __m512i first = load_as<__m512i>(from);
    const __m512i last = load_as<__m512i>(from + kWhole - 64);
    for (int i = 0; i < 4; ++i) words[i] = _mm512_permutex2var_epi8(first, load_as<__m512i>(kOrder.bytes[i]), last);
  } else {
    constexpr int kWhole = 16 * kBits;
    static constexpr AffineOrder<kBits, kWhole, true> kOrder;
    const __m512i first = load_as<__m512i>(from);
    const __m512i second = load_as<__m512i>(from + kWhole - 64);
    const __m512i third = load_as<__m512i>(from + kWhole);
    const __m512i last = load_as<__m512i>(from + 2 * kWhole - 64);
    for (int i = 0; i < 4; ++i) {
      const __m512i order = load_as<__m512i>(kOrder.bytes[i]);
      const __m512i low = _mm512_permutex2var_epi8(first, order, second);
      words[i] = _mm512_mask_blend_epi64(0xf0, low, _mm512_permutex2var_epi8(third, order, last));
    }
  }
}

// 256 packed codes.
template <int kBits>
[[gnu::always_inline]] inline void decode_affine(const std::uint8_t* from, __m512i (&codes)[4]) {
  if constexpr (kBits == 8) {
    __m512i pairs[4];
    for (int j = 0; j < 4; ++j) pairs[j] = join_halves(from + 32 * j, from + 32 * j + 128);
    transpose_eights(pairs, codes);
  } else {
    __m512i words[4];
    gather_words<kBits>(from, words);
    const __m512i shifts = _mm512_set1_epi64(kBits * 0x0706050403020100);
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    for (int i = 0; i < 4; ++i) codes[i] = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, words[i]), mask);
  }
}

// The factors of eight blocks of 32 to the even lanes.
template <std::size_t kGroup>
[[gnu::always_inline]] inline __m512 affine_factors(const std::uint8_t* from) {
  __m128i halves;
  if constexpr (kGroup == 32) {
    halves = load_as<__m128i>(from);
  } else if constexpr (kGroup == 64) {
    const __m128i four = _mm_cvtsi64_si128(load_as<long long>(from));
    halves = _mm_unpacklo_epi16(four, four);
  } else {
    const __m128i two = _mm_cvtsi32_si128(load_as<int>(from));
    const __m128i twice = _mm_unpacklo_epi16(two, two);
    halves = _mm_unpacklo_epi32(twice, twice);
  }
  return _mm512_castsi512_ps(_mm512_slli_epi64(_mm512_cvtepu16_epi64(halves), 16));
}

template <int kBits, std::size_t kGroupValues>
struct EightAffine : EightFormat<4 * kBits, 0, true> {
  static constexpr std::size_t kGroup = kGroupValues;

  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* codes, const std::uint8_t* scales,
                                            const std::uint8_t* biases) const {
    PlanarEight out;
    decode_affine<kBits>(codes, out.codes);
    out.d = affine_factors<kGroup>(scales);
    out.m = affine_factors<kGroup>(biases);
    return out;
  }
};

template <int kBits>
TypeKernel affine_of_group(unsigned group) {
  switch (group) {
    case 32: return {InputForm::kBlocks32, planar_eights<EightAffine<kBits, 32>>};
    case 64: return {InputForm::kBlocks32, planar_eights<EightAffine<kBits, 64>>};
    default: return {InputForm::kBlocks32, planar_eights<EightAffine<kBits, 128>>};
  }
}

inline TypeKernel affine_kernel(Affine affine) {
  switch (affine.bits) {
    case 2: return affine_of_group<2>(affine.group);
    case 3: return affine_of_group<3>(affine.group);
    case 4: return affine_of_group<4>(affine.group);
    case 5: return affine_of_group<5>(affine.group);
    case 6: return affine_of_group<6>(affine.group);
    default: return affine_of_group<8>(affine.group);
  }
}

}  // namespace
}  // namespace moestream::cpu
