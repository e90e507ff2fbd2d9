// The K formats for AVX-512: 2 to 6 bit codes with integer scales per 16 or 32 values.
//
// A qword of packed bytes holds the codes of 8 values for two (nibbles) or four (bit pairs) blocks. It is therefore
// copied to the places of all its blocks and shifted there: one permutation, one shift and one mask per 64 codes.
#pragma once

#include "avx512_engine.h"
#include "unpack.h"

namespace moestream::cpu {
namespace {

// Bytes to lanes: byte b of `bytes` to lanes 2b and 2b + 1.
[[gnu::always_inline]] inline __m512i bytes_to_lane_pairs(std::uint64_t bytes) {
  const __m128i low = _mm_cvtsi64_si128(static_cast<long long>(bytes));
  return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(low, low));
}

// Of 16 signed bytes, those at 2b + half to lanes 2b and 2b + 1.
[[gnu::always_inline]] inline __m512i half_to_lane_pairs(__m128i bytes, int half) {
  const __m128i even = _mm_setr_epi8(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
  return _mm512_cvtepi8_epi32(_mm_shuffle_epi8(bytes, _mm_add_epi8(even, _mm_set1_epi8(static_cast<char>(half)))));
}

// Nibble pairs of Q4_K and Q5_K: 32 bytes hold blocks 2p (low) and 2p + 1 (high).
[[gnu::always_inline]] inline void decode_nibble_pairs(const std::uint8_t* quants, __m512i (&codes)[4]) {
  const __m512i low = load_as<__m512i>(quants);
  const __m512i high = load_as<__m512i>(quants + 64);
  const __m512i shifts = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
  const __m512i place = _mm512_setr_epi64(0, 0, 4, 4, 8, 8, 12, 12);
  for (int i = 0; i < 4; ++i) {
    const __m512i both = _mm512_permutex2var_epi64(low, _mm512_add_epi64(place, _mm512_set1_epi64(i)), high);
    codes[i] = _mm512_and_si512(_mm512_srlv_epi64(both, shifts), _mm512_set1_epi8(15));
  }
}

// Adds `value` to the codes whose bit b is set in the byte of their place: high bits of Q5_K and Q3_K.
[[gnu::always_inline]] inline void add_high_bits(const std::uint8_t* high, int value, __m512i (&codes)[4]) {
  const __m512i bit = _mm512_setr_epi64(0x0101010101010101, 0x0202020202020202, 0x0404040404040404,
                                        0x0808080808080808, 0x1010101010101010, 0x2020202020202020,
                                        0x4040404040404040, static_cast<long long>(0x8080808080808080u));
  for (int i = 0; i < 4; ++i) {
    const __m512i bytes = _mm512_set1_epi64(load_as<std::int64_t>(high + 8 * i));
    const __mmask64 set = _mm512_test_epi8_mask(bytes, bit);
    codes[i] = _mm512_mask_add_epi8(codes[i], set, codes[i], _mm512_set1_epi8(static_cast<char>(value)));
  }
}

// Bit pairs of Q2_K and Q3_K: 32 bytes hold four blocks.
[[gnu::always_inline]] inline void decode_planes(const std::uint8_t* quants, __m512i (&codes)[4]) {
  const __m512i all = load_as<__m512i>(quants);
  const __m512i shifts = _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6);
  const __m512i place = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
  for (int i = 0; i < 4; ++i) {
    const __m512i four = _mm512_permutexvar_epi64(_mm512_add_epi64(place, _mm512_set1_epi64(i)), all);
    codes[i] = _mm512_and_si512(_mm512_srlv_epi64(four, shifts), _mm512_set1_epi8(3));
  }
}

struct PlanarFormat {
  static constexpr InputForm kForm = InputForm::kBlocks256;
  static constexpr bool kMins = false;
  static constexpr int kHalves = 1;
  static constexpr int kOffset = 0;
  static constexpr std::size_t kScaleAt = 0;
  static constexpr std::size_t kMinAt = 0;
  static constexpr float kScaleFactor = 1.0f;
};

struct PlanarQ4K : PlanarFormat {
  static constexpr std::size_t kBytes = 144;
  static constexpr bool kMins = true;
  static constexpr std::size_t kMinAt = 2;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    decode_nibble_pairs(block + 16, out.codes);
    const ScaleBytes bytes = scale_bytes_k(block + 4);
    out.scales[0] = bytes_to_lane_pairs(bytes.scales);
    out.mins[0] = bytes_to_lane_pairs(bytes.mins);
    return out;
  }
};

struct PlanarQ5K : PlanarFormat {
  static constexpr std::size_t kBytes = 176;
  static constexpr bool kMins = true;
  static constexpr std::size_t kMinAt = 2;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    decode_nibble_pairs(block + 48, out.codes);
    add_high_bits(block + 16, 16, out.codes);
    const ScaleBytes bytes = scale_bytes_k(block + 4);
    out.scales[0] = bytes_to_lane_pairs(bytes.scales);
    out.mins[0] = bytes_to_lane_pairs(bytes.mins);
    return out;
  }
};

struct PlanarQ6K : PlanarFormat {
  static constexpr std::size_t kBytes = 210;
  static constexpr int kHalves = 2;
  static constexpr int kOffset = 32;
  static constexpr std::size_t kScaleAt = 208;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i low[2] = {load_as<__m512i>(block), load_as<__m512i>(block + 64)};
    const __m512i high = load_as<__m512i>(block + 128);
    const __m512i low_place = _mm512_setr_epi64(0, 4, 0, 4, 8, 12, 8, 12);
    const __m512i low_shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    const __m512i high_place = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
    // The bit pair of block t of four, at bit 2t, comes to bits 4 and 5.
    const __m512i high_turns = _mm512_setr_epi64(60, 62, 0, 2, 60, 62, 0, 2);
    for (int i = 0; i < 4; ++i) {
      const __m512i step = _mm512_set1_epi64(i);
      const __m512i nibbles = _mm512_permutex2var_epi64(low[0], _mm512_add_epi64(low_place, step), low[1]);
      const __m512i pairs = _mm512_permutexvar_epi64(_mm512_add_epi64(high_place, step), high);
      const __m512i four = _mm512_and_si512(_mm512_srlv_epi64(nibbles, low_shifts), _mm512_set1_epi8(15));
      const __m512i two = _mm512_and_si512(_mm512_rorv_epi64(pairs, high_turns), _mm512_set1_epi8(0x30));
      out.codes[i] = _mm512_or_si512(four, two);
    }
    const __m128i scales = load_as<__m128i>(block + 192);
    for (int h = 0; h < 2; ++h) out.scales[h] = half_to_lane_pairs(scales, h);
    return out;
  }
};

struct PlanarQ2K : PlanarFormat {
  static constexpr std::size_t kBytes = 84;
  static constexpr bool kMins = true;
  static constexpr int kHalves = 2;
  static constexpr std::size_t kScaleAt = 80;
  static constexpr std::size_t kMinAt = 82;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    decode_planes(block + 16, out.codes);
    const __m128i bytes = load_as<__m128i>(block);
    const __m128i low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    for (int h = 0; h < 2; ++h) {
      out.scales[h] = half_to_lane_pairs(low, h);
      out.mins[h] = half_to_lane_pairs(high, h);
    }
    return out;
  }
};

struct PlanarQ3K : PlanarFormat {
  static constexpr std::size_t kBytes = 110;
  static constexpr int kHalves = 2;
  static constexpr int kOffset = 4;
  static constexpr std::size_t kScaleAt = 108;

  // Sixteen 6-bit scales: low nibbles of 8 bytes, their high nibbles, and bit pairs of 4 more.
  [[gnu::always_inline]] static __m128i scales_of(const std::uint8_t* packed) {
    const std::uint64_t nibbles = load_as<std::uint64_t>(packed);
    const std::uint64_t pairs = load_as<std::uint32_t>(packed + 8);
    constexpr std::uint64_t kNibbles = 0x0f0f0f0f0f0f0f0f;
    constexpr std::uint64_t kPairs = 0x30303030;
    const std::uint64_t first = ((pairs << 4) & kPairs) | ((pairs << 2) & kPairs) << 32;
    const std::uint64_t second = (pairs & kPairs) | ((pairs >> 2) & kPairs) << 32;
    const __m128i codes = _mm_set_epi64x(static_cast<long long>(((nibbles >> 4) & kNibbles) | second),
                                         static_cast<long long>((nibbles & kNibbles) | first));
    return _mm_sub_epi8(codes, _mm_set1_epi8(32));
  }

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    decode_planes(block + 32, out.codes);
    add_high_bits(block, 4, out.codes);
    const __m128i scales = scales_of(block + 96);
    for (int h = 0; h < 2; ++h) out.scales[h] = half_to_lane_pairs(scales, h);
    return out;
  }
};

}  // namespace
}  // namespace moestream::cpu
