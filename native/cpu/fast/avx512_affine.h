// The affine types for AVX-512: packed codes, and scales and biases that stand apart.
//
// Eight codes of n bits are n bytes in a row. Byte permutations bring the bytes of every eight to one 64-bit word, in the
// order of PlanarUnit; one multishift takes the eight codes out of the word, whatever n is. Codes are used unsigned, so 8
// bits need no offset either.
#pragma once

#include "avx512_eights.h"

namespace moestream::cpu {
namespace {

// 256 codes as windows of 64 bytes: each has all the bytes of `kBlocks` blocks of 32. A permutation of one register costs
// a third of one of two, so more and smaller windows are quicker.
template <int kBits>
struct AffineWindows {
  static constexpr int kBytes = 32 * kBits;
  static constexpr int kBlocks = kBits == 2 ? 8 : kBits <= 4 ? 4 : 2;
  static constexpr int kCount = 8 / kBlocks;

  // The last windows end with the codes, so that nothing behind them is read.
  static constexpr int begin(int window) {
    const int wanted = window * kBlocks * 4 * kBits;
    return wanted < kBytes - 64 ? wanted : kBytes - 64;
  }

  // The bytes of a window's blocks in a vector: eight per block.
  static constexpr std::uint64_t mask(int window) {
    const std::uint64_t whole = kBlocks == 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * kBlocks % 64)) - 1;
    return whole << (8 * kBlocks * window);
  }

  // Where in its window a byte of vector i is: word b of it has those at (4b + i) * kBits.
  struct Order {
    alignas(64) std::uint8_t bytes[4][64] = {};

    constexpr Order() {
      for (int i = 0; i < 4; ++i) {
        for (int at = 0; at < 64; ++at) {
          const int word = at / 8;
          const int from = (4 * word + i) * kBits + (at % 8 < kBits ? at % 8 : 0);
          bytes[i][at] = static_cast<std::uint8_t>(from - begin(word / kBlocks));
        }
      }
    }
  };
};

// One word holds bytes of one eight; those it does not need are any.
template <int kBits>
[[gnu::always_inline]] inline void gather_words(const std::uint8_t* from, __m512i (&words)[4]) {
  using Windows = AffineWindows<kBits>;
  static constexpr typename Windows::Order kOrder;
  __m512i windows[Windows::kCount];
  for (int w = 0; w < Windows::kCount; ++w) windows[w] = load_as<__m512i>(from + Windows::begin(w));
  for (int i = 0; i < 4; ++i) {
    const __m512i order = load_as<__m512i>(kOrder.bytes[i]);
    words[i] = _mm512_permutexvar_epi8(order, windows[0]);
    for (int w = 1; w < Windows::kCount; ++w) {
      words[i] = _mm512_mask_permutexvar_epi8(words[i], Windows::mask(w), order, windows[w]);
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
