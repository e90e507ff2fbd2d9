// The formats of 32 values per block for AVX-512, eight blocks at a time.
#pragma once

#include "avx512_engine.h"
#include "unpack.h"

namespace moestream::cpu {
namespace {

// Half floats at the same place of eight blocks.
template <std::size_t kStride>
[[gnu::always_inline]] inline __m512 eight_halves(const std::uint8_t* first) {
  std::uint16_t halves[8];
  for (std::size_t b = 0; b < 8; ++b) halves[b] = load_as<std::uint16_t>(first + b * kStride);
  return to_even_lanes(_mm256_cvtph_ps(load_as<__m128i>(halves)));
}

// 16 bytes of nibbles of each of eight blocks: values 0 to 15 in the low ones.
template <std::size_t kStride>
[[gnu::always_inline]] inline void eight_nibble_blocks(const std::uint8_t* first, __m512i (&codes)[4]) {
  __m512i four[2];
  for (std::size_t h = 0; h < 2; ++h) {
    const std::uint8_t* const at = first + 4 * h * kStride;
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(load_as<__m128i>(at)),
                                           load_as<__m128i>(at + kStride), 1);
    const __m512i three = _mm512_inserti32x4(two, load_as<__m128i>(at + 2 * kStride), 2);
    four[h] = _mm512_inserti32x4(three, load_as<__m128i>(at + 3 * kStride), 3);
  }
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  const __m512i parts[2] = {_mm512_permutex2var_epi64(four[0], even, four[1]),
                            _mm512_permutex2var_epi64(four[0], odd, four[1])};
  for (int p = 0; p < 2; ++p) {
    codes[p] = _mm512_and_si512(parts[p], _mm512_set1_epi8(15));
    codes[2 + p] = _mm512_and_si512(_mm512_srli_epi16(parts[p], 4), _mm512_set1_epi8(15));
  }
}

// Adds 16 where the block's word has the value's bit.
template <std::size_t kStride>
[[gnu::always_inline]] inline void add_fifth_bits(const std::uint8_t* first, __m512i (&codes)[4]) {
  std::uint32_t words[8];
  for (std::size_t b = 0; b < 8; ++b) words[b] = load_as<std::uint32_t>(first + b * kStride);
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29, 2, 6, 10, 14, 18,
                                         22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  const __m256i ordered = _mm256_permutexvar_epi8(order, load_as<__m256i>(words));
  std::uint64_t masks[4];
  std::memcpy(masks, &ordered, sizeof masks);
  for (int i = 0; i < 4; ++i) {
    codes[i] = _mm512_mask_add_epi8(codes[i], masks[i], codes[i], _mm512_set1_epi8(16));
  }
}

// Codes of a table of 16, with an offset that makes them positive.
[[gnu::always_inline]] inline void look_up_codes(const std::int8_t* values, int offset, __m512i (&codes)[4]) {
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_add_epi8(load_as<__m128i>(values), _mm_set1_epi8(static_cast<char>(offset))));
  for (int i = 0; i < 4; ++i) codes[i] = _mm512_shuffle_epi8(table, codes[i]);
}

template <std::size_t kBlockBytes, int kCodeOffset, bool kHasMins = false>
struct EightFormat {
  static constexpr std::size_t kBytes = kBlockBytes;
  static constexpr int kOffset = kCodeOffset;
  static constexpr bool kMins = kHasMins;
  static constexpr std::size_t kGroup = 0;  // values that share a scale which stands apart; see avx512_affine.h
};

struct EightQ80 : EightFormat<34, 128> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    __m512i pairs[4];
    for (std::size_t j = 0; j < 4; ++j) {
      pairs[j] = join_halves(blocks + j * kBytes + 2, blocks + (j + 4) * kBytes + 2);
    }
    transpose_eights(pairs, out.codes);
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int i = 0; i < 4; ++i) out.codes[i] = _mm512_xor_si512(out.codes[i], flip);
    out.d = eight_halves<kBytes>(blocks);
    return out;
  }
};

struct EightQ40 : EightFormat<18, 8> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 2, out.codes);
    out.d = eight_halves<kBytes>(blocks);
    return out;
  }
};

struct EightQ41 : EightFormat<20, 0, true> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 4, out.codes);
    out.d = eight_halves<kBytes>(blocks);
    out.m = eight_halves<kBytes>(blocks + 2);
    return out;
  }
};

struct EightQ50 : EightFormat<22, 16> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 6, out.codes);
    add_fifth_bits<kBytes>(blocks + 2, out.codes);
    out.d = eight_halves<kBytes>(blocks);
    return out;
  }
};

struct EightQ51 : EightFormat<24, 0, true> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 8, out.codes);
    add_fifth_bits<kBytes>(blocks + 4, out.codes);
    out.d = eight_halves<kBytes>(blocks);
    out.m = eight_halves<kBytes>(blocks + 2);
    return out;
  }
};

struct EightIq4Nl : EightFormat<18, 128> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 2, out.codes);
    look_up_codes(kCodesIq4, kOffset, out.codes);
    out.d = eight_halves<kBytes>(blocks);
    return out;
  }
};

struct EightMxfp4 : EightFormat<17, 16> {
  [[gnu::always_inline]] PlanarEight decode(const std::uint8_t* blocks) const {
    PlanarEight out;
    eight_nibble_blocks<kBytes>(blocks + 1, out.codes);
    look_up_codes(kCodesMxfp4, kOffset, out.codes);
    float d[8];
    for (std::size_t b = 0; b < 8; ++b) d[b] = mxfp4_scale(blocks[b * kBytes]);
    out.d = to_even_lanes(load_as<__m256>(d));
    return out;
  }
};

}  // namespace
}  // namespace moestream::cpu
