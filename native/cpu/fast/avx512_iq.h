// The codebook formats for AVX-512.
//
// IQ3: an entry is four magnitudes out of eight, 12 bits. Two tables of 256 (or 512) bytes hold two choices each, and
// a byte permutation looks up 64 indices in 64 entries at once: 8 permutations give the choices of 256 values, 4 more
// their magnitudes. Against 64 separate loads and inserts that is 12 instructions instead of about 130.
// Signs: the code is magnitude + 128, and negating that byte is 128 - magnitude, so a mask applies them in one
// instruction. Seven stored bits become eight (their number is even) by one multiplication with a bit matrix.
#pragma once

#include "avx512_k.h"

namespace moestream::cpu {
namespace {

[[gnu::always_inline]] inline __m512i negate_where(__m512i codes, __mmask64 negative) {
  return _mm512_mask_sub_epi8(codes, negative, _mm512_setzero_si512(), codes);
}

// Bits 0 to 6 of every byte, and in bit 7 their parity.
[[gnu::always_inline]] inline __m512i with_parity(__m512i sevens) {
  return _mm512_gf2p8affine_epi64_epi8(sevens, _mm512_set1_epi64(0x010204081020407f), 0);
}

// Lanes 2b and 2b + 1: bits 4b ... 4b + 3.
[[gnu::always_inline]] inline __m512i nibbles_to_lane_pairs(std::uint32_t nibbles) {
  const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  const __m512i all = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(nibbles)), shifts);
  return _mm512_and_si512(all, _mm512_set1_epi32(15));
}

[[gnu::always_inline]] inline __m512i twice_plus_one(__m512i values) {
  return _mm512_add_epi32(_mm512_add_epi32(values, values), _mm512_set1_epi32(1));
}

struct PlanarIq4Xs : PlanarFormat {
  static constexpr std::size_t kBytes = 136;
  static constexpr int kOffset = 128;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i low = load_as<__m512i>(block + 8);
    const __m512i high = load_as<__m512i>(block + 72);
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i values = _mm512_broadcast_i32x4(
        _mm_xor_si128(load_as<__m128i>(kCodesIq4), _mm_set1_epi8(static_cast<char>(0x80))));
    const __m512i parts[2] = {_mm512_permutex2var_epi64(low, even, high), _mm512_permutex2var_epi64(low, odd, high)};
    for (int p = 0; p < 2; ++p) {
      const __m512i first = _mm512_and_si512(parts[p], _mm512_set1_epi8(15));
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(parts[p], 4), _mm512_set1_epi8(15));
      out.codes[p] = _mm512_shuffle_epi8(values, first);
      out.codes[2 + p] = _mm512_shuffle_epi8(values, second);
    }
    const __m512i shifts = _mm512_setr_epi32(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
    const __m512i pairs = _mm512_srlv_epi32(_mm512_set1_epi32(load_as<std::uint16_t>(block + 2)), shifts);
    const __m512i top = _mm512_slli_epi32(_mm512_and_si512(pairs, _mm512_set1_epi32(3)), 4);
    const __m512i code = _mm512_or_si512(nibbles_to_lane_pairs(load_as<std::uint32_t>(block + 4)), top);
    out.scales[0] = _mm512_sub_epi32(code, _mm512_set1_epi32(32));
    return out;
  }
};

// Eight magnitudes + 128, sixteen times over for byte shuffles.
[[gnu::always_inline]] inline __m512i magnitude_table(std::uint64_t magnitudes) {
  return _mm512_set1_epi64(static_cast<long long>(magnitudes | 0x8080808080808080u));
}

// Choices of values 2h and 2h + 1 of the entries at 64 indices below 256. `in` says which quarter an index is in.
struct Quarters {
  __mmask64 second;
  __mmask64 third;
  __mmask64 fourth;
};

[[gnu::always_inline]] inline Quarters quarters_of(__m512i indices) {
  const __mmask64 top = _mm512_movepi8_mask(indices);
  const __mmask64 next = _mm512_test_epi8_mask(indices, _mm512_set1_epi8(64));
  return {_kandn_mask64(top, next), _kandn_mask64(next, top), _kand_mask64(top, next)};
}

[[gnu::always_inline]] inline __m512i look_up_256(const std::uint8_t* table, __m512i indices, const Quarters& in) {
  __m512i found = _mm512_permutexvar_epi8(indices, load_as<__m512i>(table));
  found = _mm512_mask_permutexvar_epi8(found, in.second, indices, load_as<__m512i>(table + 64));
  found = _mm512_mask_permutexvar_epi8(found, in.third, indices, load_as<__m512i>(table + 128));
  return _mm512_mask_permutexvar_epi8(found, in.fourth, indices, load_as<__m512i>(table + 192));
}

// Two choices per byte, below 8 each, to magnitudes: shuffles read the low nibble, and the other leaves bit 7 clear.
[[gnu::always_inline]] inline void choices_to_codes(__m512i choices, __m512i table, __m512i& first, __m512i& second) {
  first = _mm512_shuffle_epi8(table, choices);
  second = _mm512_shuffle_epi8(table, _mm512_srli_epi16(choices, 4));
}

// `signs`: bytes 2g and 2g + 1 hold the eight signs of values 8g ... 8g + 7, four for each of two entries.
[[gnu::always_inline]] inline void apply_quad_signs(__m512i signs, __m512i (&codes)[4]) {
  for (int i = 0; i < 4; ++i) {
    const __m512i bit = _mm512_set1_epi16(static_cast<short>((1 << i) | (1 << (12 + i))));
    codes[i] = negate_where(codes[i], _mm512_test_epi8_mask(signs, bit));
  }
}

struct PlanarIq3Xxs : PlanarFormat {
  static constexpr InputForm kForm = InputForm::kQuads256;
  static constexpr std::size_t kBytes = 98;
  static constexpr int kOffset = 128;
  static constexpr float kScaleFactor = 0.25f;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i indices = load_as<__m512i>(block + 2);
    const Quarters in = quarters_of(indices);
    const __m512i table = magnitude_table(0x3e342c241c140c04);  // 62, 52, 44, ... 4
    for (int h = 0; h < 2; ++h) {
      const __m512i choices = look_up_256(kPairsIq3Xxs.pairs[h], indices, in);
      choices_to_codes(choices, table, out.codes[2 * h], out.codes[2 * h + 1]);
    }
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i packed =
        _mm512_permutexvar_epi32(twice, _mm512_castsi256_si512(load_as<__m256i>(block + 66)));
    const __m512i fields = _mm512_set1_epi64(0x15150e0e07070000);  // bits 0, 7, 14 and 21, each twice
    apply_quad_signs(with_parity(_mm512_multishift_epi64_epi8(fields, packed)), out.codes);
    // 2 s + 1 with s in the top four bits.
    out.scales[0] = _mm512_or_si512(_mm512_srli_epi32(packed, 27), _mm512_set1_epi32(1));
    return out;
  }
};

struct PlanarIq3S : PlanarFormat {
  static constexpr InputForm kForm = InputForm::kQuads256;
  static constexpr std::size_t kBytes = 110;
  static constexpr int kOffset = 128;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i indices = load_as<__m512i>(block + 2);
    const __mmask64 beyond = load_as<std::uint64_t>(block + 66);  // bit m: index m is 256 more
    const Quarters in = quarters_of(indices);
    const __m512i table = magnitude_table(0x0f0d0b0907050301);
    for (int h = 0; h < 2; ++h) {
      const __m512i low = look_up_256(kPairsIq3S.pairs[h], indices, in);
      const __m512i high = look_up_256(kPairsIq3S.pairs[h] + 256, indices, in);
      choices_to_codes(_mm512_mask_blend_epi8(beyond, low, high), table, out.codes[2 * h], out.codes[2 * h + 1]);
    }
    const __m512i signs = _mm512_cvtepu8_epi16(load_as<__m256i>(block + 74));
    apply_quad_signs(_mm512_or_si512(signs, _mm512_slli_epi16(signs, 8)), out.codes);
    out.scales[0] = twice_plus_one(nibbles_to_lane_pairs(load_as<std::uint32_t>(block + 106)));
    return out;
  }
};

// IQ2: an entry is eight values, one qword, and group i of block b stands at qword b of vector i.
template <std::size_t kEntries>
[[gnu::always_inline]] inline __m512i look_up_eights(const ByteGrid<kEntries, 8>& grid, __m512i indices) {
  const __m512i magnitudes = _mm512_i64gather_epi64(indices, grid.entries, 8);
  return _mm512_or_si512(magnitudes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

// Byte 8b + i of `signs` to byte b of mask i.
[[gnu::always_inline]] inline void apply_eight_signs(__m512i signs, __m512i (&codes)[4]) {
  const __m256i order = _mm256_setr_epi8(0, 8, 16, 24, 32, 40, 48, 56, 1, 9, 17, 25, 33, 41, 49, 57, 2, 10, 18, 26,
                                         34, 42, 50, 58, 3, 11, 19, 27, 35, 43, 51, 59);
  const __m256i ordered =
      _mm512_castsi512_si256(_mm512_permutexvar_epi8(_mm512_castsi256_si512(order), signs));
  std::uint64_t masks[4];
  std::memcpy(masks, &ordered, sizeof masks);
  for (int i = 0; i < 4; ++i) codes[i] = negate_where(codes[i], masks[i]);
}

// Scales 2 s + 1 with s in the low nibbles (vectors 0, 1) and high nibbles (2, 3) of eight bytes.
[[gnu::always_inline]] inline void nibble_scales(const std::uint8_t* bytes, __m512i (&scales)[2]) {
  const __m512i all = bytes_to_lane_pairs(load_as<std::uint64_t>(bytes));
  scales[0] = twice_plus_one(_mm512_and_si512(all, _mm512_set1_epi32(15)));
  scales[1] = twice_plus_one(_mm512_srli_epi32(all, 4));
}

struct PlanarIq2Xxs : PlanarFormat {
  static constexpr std::size_t kBytes = 66;
  static constexpr int kOffset = 128;
  static constexpr float kScaleFactor = 0.125f;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i packed = load_as<__m512i>(block + 2);  // per block 4 indices, then signs and scale
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i index = _mm512_and_si512(_mm512_srli_epi64(packed, 8 * i), _mm512_set1_epi64(255));
      out.codes[i] = look_up_eights(kBytesIq2Xxs, index);
    }
    const __m512i fields = _mm512_set1_epi64(0x352e2720);  // bits 32, 39, 46 and 53
    apply_eight_signs(with_parity(_mm512_multishift_epi64_epi8(fields, packed)), out.codes);
    const __m512i scale = _mm512_srli_epi64(packed, 60);
    out.scales[0] = twice_plus_one(_mm512_or_si512(scale, _mm512_slli_epi64(scale, 32)));
    return out;
  }
};

struct PlanarIq2Xs : PlanarFormat {
  static constexpr std::size_t kBytes = 74;
  static constexpr int kHalves = 2;
  static constexpr int kOffset = 128;
  static constexpr float kScaleFactor = 0.125f;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i packed = load_as<__m512i>(block + 2);
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i index = _mm512_and_si512(_mm512_srli_epi64(packed, 16 * i), _mm512_set1_epi64(511));
      out.codes[i] = look_up_eights(kBytesIq2Xs, index);
    }
    const __m512i fields = _mm512_set1_epi64(0x39291909);  // bits 9, 25, 41 and 57
    apply_eight_signs(with_parity(_mm512_multishift_epi64_epi8(fields, packed)), out.codes);
    nibble_scales(block + 66, out.scales);
    return out;
  }
};

struct PlanarIq2S : PlanarFormat {
  static constexpr std::size_t kBytes = 82;
  static constexpr int kHalves = 2;
  static constexpr int kOffset = 128;
  static constexpr float kScaleFactor = 0.125f;

  [[gnu::always_inline]] PlanarSuper decode(const std::uint8_t* block) const {
    PlanarSuper out;
    const __m512i low = _mm512_cvtepu32_epi64(load_as<__m256i>(block + 2));
    const __m512i high = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(load_as<std::int64_t>(block + 66)));
    for (unsigned i = 0; i < 4; ++i) {
      const __m512i eight = _mm512_and_si512(_mm512_srli_epi64(low, 8 * i), _mm512_set1_epi64(255));
      const __m512i two = _mm512_and_si512(_mm512_srli_epi64(high, 2 * i), _mm512_set1_epi64(3));
      out.codes[i] = look_up_eights(kBytesIq2S, _mm512_or_si512(eight, _mm512_slli_epi64(two, 8)));
    }
    apply_eight_signs(_mm512_cvtepu32_epi64(load_as<__m256i>(block + 34)), out.codes);
    nibble_scales(block + 74, out.scales);
    return out;
  }
};

}  // namespace
}  // namespace moestream::cpu
