// Unpacking with AVX2 where plain C++ leaves something to win: the compiler vectorises the others.
#pragma once

#include <immintrin.h>

#include "unpack.h"

namespace moestream::cpu {
namespace {

template <TensorType kType>
struct Avx2Format : SuperFormat<kType> {};

[[gnu::always_inline]] inline void put(std::int8_t* codes, __m256i vector) {
  std::memcpy(codes, &vector, sizeof vector);
}

[[gnu::always_inline]] inline __m256i nibbles(__m256i bytes) {
  return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}

// Q4_K: 32 bytes hold two blocks, low nibbles first.
template <>
struct Avx2Format<TensorType::Q4_K> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    unpack_header_k(block, out);
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i bytes = load_as<__m256i>(block + 16 + 32 * pair);
      put(out.codes + 64 * pair, nibbles(bytes));
      put(out.codes + 64 * pair + 32, nibbles(_mm256_srli_epi16(bytes, 4)));
    }
  }
};

template <>
struct Avx2Format<TensorType::Q6_K> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int n = 0; n < 2; ++n) {
      const __m256i low[2] = {load_as<__m256i>(block + 64 * n), load_as<__m256i>(block + 64 * n + 32)};
      const __m256i high = load_as<__m256i>(block + 128 + 32 * n);
      const __m256i top[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                              _mm256_srli_epi16(high, 2)};
      for (int t = 0; t < 4; ++t) {
        const __m256i four = nibbles(t < 2 ? low[t & 1] : _mm256_srli_epi16(low[t & 1], 4));
        const __m256i two = _mm256_and_si256(top[t], _mm256_set1_epi8(0x30));
        put(out.codes + 128 * n + 32 * t, _mm256_sub_epi8(_mm256_or_si256(four, two), _mm256_set1_epi8(32)));
      }
    }
    const __m256i scales = _mm256_cvtepi8_epi16(load_as<__m128i>(block + 192));
    std::memcpy(out.scales, &scales, sizeof scales);
    out.d = half_at(block + 208);
  }
};

template <>
struct Avx2Format<TensorType::IQ4_XS> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const __m256i values = _mm256_broadcastsi128_si256(load_as<__m128i>(kCodesIq4));
    for (int b = 0; b < 8; ++b) {
      const __m128i bytes = load_as<__m128i>(block + 8 + 16 * b);
      const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
      put(out.codes + 32 * b, _mm256_shuffle_epi8(values, nibbles(both)));
    }
    // Nibble b of the low word and bit pair b of the high one, moved to the bottom of their lane.
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<std::int32_t>(block + 4)),
                                          _mm256_slli_epi32(lanes, 2));
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<std::uint16_t>(block + 2)),
                                           _mm256_slli_epi32(lanes, 1));
    const __m256i code = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                                         _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4));
    const __m256i scale = _mm256_sub_epi32(code, _mm256_set1_epi32(32));
    const __m256i twice = _mm256_blend_epi16(scale, _mm256_slli_epi32(scale, 16), 0xaa);
    std::memcpy(out.scales, &twice, sizeof twice);
    out.d = half_at(block);
  }
};

// Eight times four 7-bit fields: each to a byte of its own, and the eighth bit so that the number of ones is even.
[[gnu::always_inline]] inline __m256i sign_bytes(__m256i packed) {
  const auto field = [packed](int shift, int mask) {
    return _mm256_and_si256(_mm256_slli_epi32(packed, shift), _mm256_set1_epi32(mask));
  };
  const __m256i sevens = _mm256_or_si256(_mm256_or_si256(field(0, 0x7f), field(1, 0x7f00)),
                                         _mm256_or_si256(field(2, 0x7f0000), field(3, 0x7f000000)));
  const __m256i folded = nibbles(_mm256_xor_si256(sevens, _mm256_srli_epi16(sevens, 4)));
  constexpr char kOdd = -128;
  const __m256i parity = _mm256_setr_epi8(0, kOdd, kOdd, 0, kOdd, 0, 0, kOdd, kOdd, 0, 0, kOdd, 0, kOdd, kOdd, 0,  //
                                          0, kOdd, kOdd, 0, kOdd, 0, 0, kOdd, kOdd, 0, 0, kOdd, 0, kOdd, kOdd, 0);
  return _mm256_or_si256(sevens, _mm256_shuffle_epi8(parity, folded));
}

// Bit i of `signs` negates byte i.
[[gnu::always_inline]] inline __m256i with_signs(__m256i magnitudes, std::uint32_t signs) {
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(signs)), byte_of);
  const __m256i negative = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
  return _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative);
}

template <>
struct Avx2Format<TensorType::IQ3_XXS> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const __m256i packed = load_as<__m256i>(block + 66);
    alignas(32) std::uint32_t signs[8];
    const __m256i all_signs = sign_bytes(packed);
    std::memcpy(signs, &all_signs, sizeof signs);
    const auto quad = [block](int m) { return load_as<std::int32_t>(kBytesIq3Xxs.entries[block[2 + m]]); };
    for (int b = 0; b < 8; ++b) {
      const int m = 8 * b;
      const __m256i magnitudes = _mm256_setr_epi32(quad(m), quad(m + 1), quad(m + 2), quad(m + 3), quad(m + 4),
                                                   quad(m + 5), quad(m + 6), quad(m + 7));
      put(out.codes + 32 * b, with_signs(magnitudes, signs[b]));
    }
    // 2 s + 1 with s in the top four bits, in both halves of a lane.
    const __m256i scale = _mm256_or_si256(_mm256_srli_epi32(packed, 27), _mm256_set1_epi32(1));
    const __m256i twice = _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
    std::memcpy(out.scales, &twice, sizeof twice);
    out.d = half_at(block) * 0.25f;
  }
};

}  // namespace
}  // namespace moestream::cpu
