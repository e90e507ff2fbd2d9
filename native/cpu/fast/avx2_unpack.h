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

// Each of eight bytes to two of sixteen 16-bit lanes.
[[gnu::always_inline]] inline void put_twice(std::int16_t* lanes, std::uint64_t bytes) {
  const __m128i eight = _mm_cvtsi64_si128(static_cast<long long>(bytes));
  const __m256i sixteen = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(eight, eight));
  std::memcpy(lanes, &sixteen, sizeof sixteen);
}

[[gnu::always_inline]] inline void put_header_k(const std::uint8_t* block, SuperBlock& out) {
  const ScaleBytes bytes = scale_bytes_k(block + 4);
  put_twice(out.scales, bytes.scales);
  put_twice(out.mins, bytes.mins);
  out.d = half_at(block);
  out.dmin = half_at(block + 2);
}

// Q4_K: 32 bytes hold two blocks, low nibbles first.
template <>
struct Avx2Format<TensorType::Q4_K> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    put_header_k(block, out);
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i bytes = load_as<__m256i>(block + 16 + 32 * pair);
      put(out.codes + 64 * pair, nibbles(bytes));
      put(out.codes + 64 * pair + 32, nibbles(_mm256_srli_epi16(bytes, 4)));
    }
  }
};

// Q5_K: bit b of the byte of a value's place is the fifth bit of block b.
template <>
struct Avx2Format<TensorType::Q5_K> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    put_header_k(block, out);
    const __m256i high = load_as<__m256i>(block + 16);
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i bytes = load_as<__m256i>(block + 48 + 32 * pair);
      const __m256i halves[2] = {nibbles(bytes), nibbles(_mm256_srli_epi16(bytes, 4))};
      for (int h = 0; h < 2; ++h) {
        const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << (2 * pair + h)));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
        const __m256i fifth = _mm256_and_si256(set, _mm256_set1_epi8(16));
        put(out.codes + 64 * pair + 32 * h, _mm256_or_si256(halves[h], fifth));
      }
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

// All ones in byte i where bit i is set.
[[gnu::always_inline]] inline __m256i bytes_of_bits(std::uint32_t bits) {
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
}

// Q3_K: bit pairs as in Q2_K, and bit b of the byte of a value's place is its third bit.
template <>
struct Avx2Format<TensorType::Q3_K> {
  [[gnu::always_inline]] static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const __m256i high = load_as<__m256i>(block);
    for (int b = 0; b < 8; ++b) {
      const __m256i plane = load_as<__m256i>(block + 32 + 32 * (b / 4));
      const __m256i two = _mm256_and_si256(_mm256_srli_epi16(plane, 2 * (b % 4)), _mm256_set1_epi8(3));
      const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << b));
      const __m256i clear = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), _mm256_setzero_si256());
      put(out.codes + 32 * b, _mm256_sub_epi8(two, _mm256_and_si256(clear, _mm256_set1_epi8(4))));
    }
    unpack_scales_q3(block + 96, out.scales);
    out.d = half_at(block + 108);
  }
};

// ---- Blocks of 32

// Half floats at the same place of eight blocks.
template <std::size_t kStride>
[[gnu::always_inline]] inline void put_halves(float* values, const std::uint8_t* first) {
  std::uint16_t halves[8];
  for (std::size_t b = 0; b < 8; ++b) halves[b] = load_as<std::uint16_t>(first + b * kStride);
  const __m256 floats = _mm256_cvtph_ps(load_as<__m128i>(halves));
  std::memcpy(values, &floats, sizeof floats);
}

// 16 bytes of nibbles: the low ones are the first half of the block.
[[gnu::always_inline]] inline __m256i nibble_block(const std::uint8_t* from) {
  const __m128i bytes = load_as<__m128i>(from);
  return nibbles(_mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1));
}

template <TensorType kType>
[[gnu::always_inline]] inline __m256i codes_of_block(const std::uint8_t* block) {
  if constexpr (kType == TensorType::Q8_0) return load_as<__m256i>(block + 2);
  if constexpr (kType == TensorType::Q4_0) return _mm256_sub_epi8(nibble_block(block + 2), _mm256_set1_epi8(8));
  if constexpr (kType == TensorType::Q4_1) return nibble_block(block + 4);
  if constexpr (kType == TensorType::Q5_0 || kType == TensorType::Q5_1) {
    constexpr bool kSigned = kType == TensorType::Q5_0;
    const __m256i four = nibble_block(block + (kSigned ? 6 : 8));
    const __m256i set = bytes_of_bits(load_as<std::uint32_t>(block + (kSigned ? 2 : 4)));
    const __m256i code = _mm256_or_si256(four, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    return kSigned ? _mm256_sub_epi8(code, _mm256_set1_epi8(16)) : code;
  }
  if constexpr (kType == TensorType::MXFP4) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_as<__m128i>(kCodesMxfp4)), nibble_block(block + 1));
  }
  if constexpr (kType == TensorType::IQ4_NL) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_as<__m128i>(kCodesIq4)), nibble_block(block + 2));
  }
}

template <TensorType kType>
[[gnu::always_inline]] inline void put_blocks(const std::uint8_t* from, std::size_t count, EightBlocks& out) {
  constexpr std::size_t kBytes = BlockFormat<kType>::kBytes;
  if (count < 8) return unpack_eight<kType>(from, count, out);
  for (std::size_t b = 0; b < 8; ++b) put(out.codes + 32 * b, codes_of_block<kType>(from + b * kBytes));
  if constexpr (kType == TensorType::MXFP4) {
    for (std::size_t b = 0; b < 8; ++b) out.d[b] = mxfp4_scale(from[b * kBytes]);
  } else {
    put_halves<kBytes>(out.d, from);
  }
  if constexpr (BlockFormat<kType>::kMins) put_halves<kBytes>(out.m, from + 2);
}

// ---- Affine types

// 32 packed codes as two loads that overlap where 4 * kBits bytes are fewer than two registers, so that nothing behind
// them is read, and which of their bytes make up each of four words of eight codes.
template <int kBits>
struct AffineLoads {
  static constexpr int kLoad = kBits < 4 ? 8 : 16;
  static constexpr int kSecond = 4 * kBits - kLoad;

  struct Order {
    alignas(32) std::uint8_t bytes[32];
  };

  static constexpr Order make_order() {
    Order order{};
    for (int i = 0; i < 32; ++i) {
      const int word = i / 8;
      const int within = (word / 2 == 0 ? 0 : 2 * kBits - kSecond) + (word % 2) * kBits + i % 8;
      order.bytes[i] = static_cast<std::uint8_t>(i % 8 < kBits ? within : 0x80);
    }
    return order;
  }

  static constexpr Order kOrder = make_order();

  [[gnu::always_inline]] static __m128i load(const std::uint8_t* from) {
    if constexpr (kLoad == 8) return _mm_cvtsi64_si128(load_as<long long>(from));
    return load_as<__m128i>(from);
  }
};

template <int kBits>
[[gnu::always_inline]] inline void put_affine_block(const std::uint8_t* from, std::int8_t* codes) {
  if constexpr (kBits == 8) {
    put(codes, _mm256_xor_si256(load_as<__m256i>(from), _mm256_set1_epi8(static_cast<char>(0x80))));
  } else if constexpr (kBits == 4) {
    // A byte becomes two, of which the upper one gets what was shifted into it.
    const __m256i bytes = _mm256_cvtepu8_epi16(load_as<__m128i>(from));
    put(codes, nibbles(_mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4))));
  } else if constexpr (kBits == 2) {
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_as<long long>(from)));
    const __m256i two = _mm256_or_si256(bytes, _mm256_slli_epi32(bytes, 6));
    const __m256i four = _mm256_or_si256(two, _mm256_slli_epi32(two, 12));
    put(codes, _mm256_and_si256(four, _mm256_set1_epi8(3)));
  } else {
    using Loads = AffineLoads<kBits>;
    using Words = std::uint64_t __attribute__((vector_size(32)));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(Loads::load(from)),
                                                 Loads::load(from + Loads::kSecond), 1);
    const __m256i packed = _mm256_shuffle_epi8(both, load_as<__m256i>(Loads::kOrder.bytes));
    const Words bytes = spread_codes<kBits>(__builtin_bit_cast(Words, packed));
    std::memcpy(codes, &bytes, sizeof bytes);
  }
}

}  // namespace
}  // namespace moestream::cpu
