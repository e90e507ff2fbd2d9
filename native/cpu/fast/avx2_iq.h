// Unpacking the codebook formats with AVX2: entries are loaded one by one, signs are applied to 32 values at once.
//
// A table of 128 sign patterns of 8 bytes, the usual way, takes four loads per 32 values; eight instructions for all
// 256 values make whole sign words instead, and three per 32 values spread them over bytes.
#pragma once

#include "avx2_unpack.h"
#include "natural.h"

namespace moestream::cpu {
namespace {

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

// 2 s + 1 with s in the top four bits of a word, in both halves of the word.
[[gnu::always_inline]] inline __m256i odd_scales(__m256i packed) {
  const __m256i scale = _mm256_or_si256(_mm256_srli_epi32(packed, 27), _mm256_set1_epi32(1));
  return _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
}

[[gnu::always_inline]] inline void put_odd_scales(__m256i packed, std::int16_t* scales) {
  const __m256i twice = odd_scales(packed);
  std::memcpy(scales, &twice, sizeof twice);
}

// Bit i of `signs` negates byte i.
[[gnu::always_inline]] inline __m256i with_signs(__m256i magnitudes, std::uint32_t signs) {
  const __m256i negative = bytes_of_bits(signs);
  return _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative);
}

struct SignWords {
  alignas(32) std::uint32_t words[8];
};

[[gnu::always_inline]] inline SignWords words_of(__m256i vector) { return __builtin_bit_cast(SignWords, vector); }

// The eight magnitudes that `index` gives for groups 0 to 3 of a block.
template <std::size_t kEntries, class Index>
[[gnu::always_inline]] inline __m256i four_eights(const ByteGrid<kEntries, 8>& grid, const Index& index) {
  const auto eight = [&](int group) { return load_as<long long>(grid.entries[index(group)]); };
  return _mm256_setr_epi64x(eight(0), eight(1), eight(2), eight(3));
}

template <std::size_t kEntries, class Index>
[[gnu::always_inline]] inline __m256i eight_quads(const ByteGrid<kEntries, 4>& grid, const Index& index) {
  const auto quad = [&](int m) { return load_as<int>(grid.entries[index(m)]); };
  return _mm256_setr_epi32(quad(0), quad(1), quad(2), quad(3), quad(4), quad(5), quad(6), quad(7));
}

// 2 s + 1 of the 4-bit scales of 16 groups of 16.
[[gnu::always_inline]] inline void put_nibble_scales(const std::uint8_t* bytes, std::int16_t* scales) {
  for (int s = 0; s < 16; ++s) scales[s] = static_cast<std::int16_t>(2 * ((bytes[s / 2] >> (4 * (s % 2))) & 15) + 1);
}

template <>
struct Avx2Format<TensorType::IQ2_XXS> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const __m256i packed = _mm256_permutevar8x32_epi32(
        _mm256_castps_si256(_mm256_shuffle_ps(load_as<__m256>(block + 2), load_as<__m256>(block + 34), 0xdd)),
        _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7));
    const SignWords signs = words_of(sign_bytes(packed));
    for (int b = 0; b < 8; ++b) {
      const __m256i magnitudes = four_eights(kBytesIq2Xxs, [&](int g) { return block[2 + 8 * b + g]; });
      put(out.codes + 32 * b, with_signs(magnitudes, signs.words[b]));
    }
    put_odd_scales(packed, out.scales);
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct Avx2Format<TensorType::IQ2_XS> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int b = 0; b < 8; ++b) {
      const auto entry = [&](int g) { return unsigned{load_as<std::uint16_t>(block + 2 + 8 * b + 2 * g)}; };
      std::uint32_t signs = 0;
      for (int g = 0; g < 4; ++g) signs |= eight_signs(entry(g) >> 9) << (8 * g);
      const __m256i magnitudes = four_eights(kBytesIq2Xs, [&](int g) { return entry(g) & 511u; });
      put(out.codes + 32 * b, with_signs(magnitudes, signs));
    }
    put_nibble_scales(block + 66, out.scales);
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct Avx2Format<TensorType::IQ2_S> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int b = 0; b < 8; ++b) {
      const int high = block[66 + b];
      const auto index = [&](int g) { return block[2 + 4 * b + g] | ((high >> (2 * g)) & 3) << 8; };
      put(out.codes + 32 * b,
          with_signs(four_eights(kBytesIq2S, index), load_as<std::uint32_t>(block + 34 + 4 * b)));
    }
    put_nibble_scales(block + 74, out.scales);
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct Avx2Format<TensorType::IQ3_S> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int b = 0; b < 8; ++b) {
      const int high = block[66 + b];
      const auto index = [&](int m) { return block[2 + 8 * b + m] | ((high >> m) & 1) << 8; };
      put(out.codes + 32 * b,
          with_signs(eight_quads(kBytesIq3S, index), load_as<std::uint32_t>(block + 74 + 4 * b)));
      set_scale32(out, b, 2 * ((block[106 + b / 2] >> (4 * (b % 2))) & 15) + 1);
    }
    out.d = half_at(block);
  }
};

[[gnu::always_inline]] inline __m256i quads_iq3_xxs(const std::uint8_t* block, int b) {
  return eight_quads(kBytesIq3Xxs, [=](int m) { return block[2 + 8 * b + m]; });
}

template <>
struct Avx2Format<TensorType::IQ3_XXS> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const __m256i packed = load_as<__m256i>(block + 66);
    const SignWords signs = words_of(sign_bytes(packed));
    for (int b = 0; b < 8; ++b) put(out.codes + 32 * b, with_signs(quads_iq3_xxs(block, b), signs.words[b]));
    put_odd_scales(packed, out.scales);
    out.d = half_at(block) * 0.25f;
  }

  // isum without the detour through codes: with one input it is cheaper to sign the input.
  [[gnu::always_inline]] static __m256i dot(const std::uint8_t* block, const std::int8_t* input) {
    const __m256i packed = load_as<__m256i>(block + 66);
    const SignWords signs = words_of(sign_bytes(packed));
    const SignWords scales = words_of(odd_scales(packed));
    __m256i sum = _mm256_setzero_si256();
    for (int b = 0; b < 8; ++b) {
      const __m256i negative = _mm256_or_si256(bytes_of_bits(signs.words[b]), _mm256_set1_epi8(1));
      const __m256i values = _mm256_sign_epi8(load_as<__m256i>(input + 32 * b), negative);
      const __m256i pairs = _mm256_maddubs_epi16(quads_iq3_xxs(block, b), values);
      const __m256i scale = _mm256_set1_epi32(static_cast<int>(scales.words[b]));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
    }
    return sum;
  }
};

}  // namespace
}  // namespace moestream::cpu
