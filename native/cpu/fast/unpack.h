// Quantised blocks as signed 8-bit codes with integer scales: the meaning of every format for integer products.
//
// A value is codes[i] * scales[i / 16] * d - mins[i / 16] * dmin in the formats with 256 values per block, and
// codes[i] * d[i / 32] + m[i / 32] in those with 32, which are taken eight blocks at a time. Plain C++: the portable
// kernels multiply these, and the other instruction sets fall back to them for the formats that have no unpacking of
// their own. A power of two that a format has beside its scale is in d, where it is exact.
#pragma once

#include "../affine_codes.h"
#include "../codebooks.h"
#include "../tensor_type.h"
#include "fields.h"

namespace moestream::cpu {
namespace {

struct alignas(64) SuperBlock {
  std::int8_t codes[256];
  std::int16_t scales[16];
  std::int16_t mins[16];
  float d;
  float dmin;
};

struct alignas(64) EightBlocks {
  std::int8_t codes[256];
  float d[8];
  float m[8];
};

// ---- 256 values per block

template <TensorType kType>
struct SuperFormat;

inline void set_scale32(SuperBlock& out, int block, int scale) {
  out.scales[2 * block] = static_cast<std::int16_t>(scale);
  out.scales[2 * block + 1] = static_cast<std::int16_t>(scale);
}

// 64 bytes of four 2-bit planes: value 128 n + 32 j + l is in byte 32 n + l at bit 2 j.
inline void unpack_planes(const std::uint8_t* planes, std::int8_t* codes) {
  for (int n = 0; n < 2; ++n) {
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 32; ++l) {
        codes[128 * n + 32 * j + l] = static_cast<std::int8_t>((planes[32 * n + l] >> (2 * j)) & 3);
      }
    }
  }
}

template <>
struct SuperFormat<TensorType::Q2_K> {
  static constexpr std::size_t kBytes = 84;
  static constexpr bool kMins = true;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int s = 0; s < 16; ++s) {
      out.scales[s] = block[s] & 15;
      out.mins[s] = block[s] >> 4;
    }
    unpack_planes(block + 16, out.codes);
    out.d = half_at(block + 80);
    out.dmin = half_at(block + 82);
  }
};

inline void unpack_scales_q3(const std::uint8_t* packed, std::int16_t* scales) {
  for (int s = 0; s < 16; ++s) {
    const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
    const int high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
    scales[s] = static_cast<std::int16_t>((low | high << 4) - 32);
  }
}

template <>
struct SuperFormat<TensorType::Q3_K> {
  static constexpr std::size_t kBytes = 110;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    unpack_planes(block + 32, out.codes);
    for (int b = 0; b < 8; ++b) {
      for (int l = 0; l < 32; ++l) {
        const int offset = (block[l] >> b) & 1 ? 0 : 4;
        out.codes[32 * b + l] = static_cast<std::int8_t>(out.codes[32 * b + l] - offset);
      }
    }
    unpack_scales_q3(block + 96, out.scales);
    out.d = half_at(block + 108);
  }
};

// Eight 6-bit scales and eight 6-bit minimums of Q4_K and Q5_K, as bytes.
struct ScaleBytes {
  std::uint64_t scales;
  std::uint64_t mins;
};

inline ScaleBytes scale_bytes_k(const std::uint8_t* packed) {
  const std::uint64_t a = load_as<std::uint32_t>(packed);
  const std::uint64_t b = load_as<std::uint32_t>(packed + 4);
  const std::uint64_t c = load_as<std::uint32_t>(packed + 8);
  const std::uint64_t scales_high = (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u);
  const std::uint64_t mins_high = ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u);
  return {(a & 0x3f3f3f3fu) | scales_high << 32, (b & 0x3f3f3f3fu) | mins_high << 32};
}

inline void unpack_header_k(const std::uint8_t* block, SuperBlock& out) {
  out.d = half_at(block);
  out.dmin = half_at(block + 2);
  const ScaleBytes bytes = scale_bytes_k(block + 4);
  for (int s = 0; s < 16; ++s) {
    out.scales[s] = static_cast<std::int16_t>((bytes.scales >> (8 * (s / 2))) & 63);
    out.mins[s] = static_cast<std::int16_t>((bytes.mins >> (8 * (s / 2))) & 63);
  }
}

inline void unpack_nibble_pairs(const std::uint8_t* quants, std::int8_t* codes) {
  for (int pair = 0; pair < 4; ++pair) {
    for (int l = 0; l < 32; ++l) {
      codes[64 * pair + l] = static_cast<std::int8_t>(quants[32 * pair + l] & 15);
      codes[64 * pair + 32 + l] = static_cast<std::int8_t>(quants[32 * pair + l] >> 4);
    }
  }
}

template <>
struct SuperFormat<TensorType::Q4_K> {
  static constexpr std::size_t kBytes = 144;
  static constexpr bool kMins = true;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    unpack_header_k(block, out);
    unpack_nibble_pairs(block + 16, out.codes);
  }
};

template <>
struct SuperFormat<TensorType::Q5_K> {
  static constexpr std::size_t kBytes = 176;
  static constexpr bool kMins = true;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    unpack_header_k(block, out);
    unpack_nibble_pairs(block + 48, out.codes);
    for (int b = 0; b < 8; ++b) {
      for (int l = 0; l < 32; ++l) {
        out.codes[32 * b + l] = static_cast<std::int8_t>(out.codes[32 * b + l] | ((block[16 + l] >> b) & 1) << 4);
      }
    }
  }
};

template <>
struct SuperFormat<TensorType::Q6_K> {
  static constexpr std::size_t kBytes = 210;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int n = 0; n < 2; ++n) {
      for (int t = 0; t < 4; ++t) {
        const std::uint8_t* low = block + 64 * n + 32 * (t & 1);
        const std::uint8_t* high = block + 128 + 32 * n;
        for (int l = 0; l < 32; ++l) {
          const int code = ((low[l] >> (4 * (t >> 1))) & 15) | ((high[l] >> (2 * t)) & 3) << 4;
          out.codes[128 * n + 32 * t + l] = static_cast<std::int8_t>(code - 32);
        }
      }
    }
    for (int s = 0; s < 16; ++s) out.scales[s] = static_cast<std::int8_t>(block[192 + s]);
    out.d = half_at(block + 208);
  }
};

// Bit j of `signs` negates value j.
template <int kValues>
inline void put_signed(const std::uint8_t* magnitudes, unsigned signs, std::int8_t* codes) {
  for (int j = 0; j < kValues; ++j) {
    const int negative = -static_cast<int>((signs >> j) & 1u);
    codes[j] = static_cast<std::int8_t>((magnitudes[j] ^ negative) - negative);
  }
}

// Eight signs in seven bits: the number of minuses is even.
inline unsigned eight_signs(std::uint32_t seven) {
  return seven | static_cast<unsigned>(__builtin_popcount(seven) & 1) << 7;
}

template <>
struct SuperFormat<TensorType::IQ2_XXS> {
  static constexpr std::size_t kBytes = 66;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int b = 0; b < 8; ++b) {
      const std::uint8_t* indices = block + 2 + 8 * b;
      const std::uint32_t packed = load_as<std::uint32_t>(indices + 4);
      for (int g = 0; g < 4; ++g) {
        put_signed<8>(kBytesIq2Xxs.entries[indices[g]], eight_signs((packed >> (7 * g)) & 127u),
                      out.codes + 32 * b + 8 * g);
      }
      set_scale32(out, b, static_cast<int>(2 * (packed >> 28) + 1));
    }
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct SuperFormat<TensorType::IQ2_XS> {
  static constexpr std::size_t kBytes = 74;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int g = 0; g < 32; ++g) {
      const unsigned packed = load_as<std::uint16_t>(block + 2 + 2 * g);
      put_signed<8>(kBytesIq2Xs.entries[packed & 511u], eight_signs(packed >> 9), out.codes + 8 * g);
    }
    for (int s = 0; s < 16; ++s) {
      out.scales[s] = static_cast<std::int16_t>(2 * ((block[66 + s / 2] >> (4 * (s % 2))) & 15) + 1);
    }
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct SuperFormat<TensorType::IQ2_S> {
  static constexpr std::size_t kBytes = 82;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int g = 0; g < 32; ++g) {
      const int index = block[2 + g] | ((block[66 + g / 4] >> (2 * (g % 4))) & 3) << 8;
      put_signed<8>(kBytesIq2S.entries[index], block[34 + g], out.codes + 8 * g);
    }
    for (int s = 0; s < 16; ++s) {
      out.scales[s] = static_cast<std::int16_t>(2 * ((block[74 + s / 2] >> (4 * (s % 2))) & 15) + 1);
    }
    out.d = half_at(block) * 0.125f;
  }
};

template <>
struct SuperFormat<TensorType::IQ3_XXS> {
  static constexpr std::size_t kBytes = 98;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int b = 0; b < 8; ++b) {
      const std::uint32_t packed = load_as<std::uint32_t>(block + 66 + 4 * b);
      for (int g = 0; g < 4; ++g) {
        const unsigned signs = eight_signs((packed >> (7 * g)) & 127u);
        const std::uint8_t* indices = block + 2 + 8 * b + 2 * g;
        put_signed<4>(kBytesIq3Xxs.entries[indices[0]], signs, out.codes + 32 * b + 8 * g);
        put_signed<4>(kBytesIq3Xxs.entries[indices[1]], signs >> 4, out.codes + 32 * b + 8 * g + 4);
      }
      set_scale32(out, b, static_cast<int>(2 * (packed >> 28) + 1));
    }
    out.d = half_at(block) * 0.25f;
  }
};

template <>
struct SuperFormat<TensorType::IQ3_S> {
  static constexpr std::size_t kBytes = 110;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    for (int m = 0; m < 64; ++m) {
      const int index = block[2 + m] | ((block[66 + m / 8] >> (m % 8)) & 1) << 8;
      const unsigned signs = static_cast<unsigned>(block[74 + m / 2] >> (4 * (m % 2)));
      put_signed<4>(kBytesIq3S.entries[index], signs, out.codes + 4 * m);
    }
    for (int b = 0; b < 8; ++b) set_scale32(out, b, 2 * ((block[106 + b / 2] >> (4 * (b % 2))) & 15) + 1);
    out.d = half_at(block);
  }
};

// 16 bytes of nibbles that index 16 values; the low nibbles come first.
inline void look_up(const std::uint8_t* nibbles, const std::int8_t* values, std::int8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = values[nibbles[i] & 15];
    codes[i + 16] = values[nibbles[i] >> 4];
  }
}

template <>
struct SuperFormat<TensorType::IQ4_XS> {
  static constexpr std::size_t kBytes = 136;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, SuperBlock& out) {
    const unsigned high = load_as<std::uint16_t>(block + 2);
    for (int b = 0; b < 8; ++b) {
      look_up(block + 8 + 16 * b, kCodesIq4, out.codes + 32 * b);
      const int low = (block[4 + b / 2] >> (4 * (b % 2))) & 15;
      set_scale32(out, b, (low | static_cast<int>((high >> (2 * b)) & 3u) << 4) - 32);
    }
    out.d = half_at(block);
  }
};

// ---- 32 values per block

template <TensorType kType>
struct BlockFormat;

template <>
struct BlockFormat<TensorType::Q8_0> {
  static constexpr std::size_t kBytes = 34;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float&) {
    std::memcpy(codes, block + 2, 32);
    d = half_at(block);
  }
};

template <>
struct BlockFormat<TensorType::Q4_0> {
  static constexpr std::size_t kBytes = 18;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float&) {
    for (int i = 0; i < 16; ++i) {
      codes[i] = static_cast<std::int8_t>((block[2 + i] & 15) - 8);
      codes[i + 16] = static_cast<std::int8_t>((block[2 + i] >> 4) - 8);
    }
    d = half_at(block);
  }
};

template <>
struct BlockFormat<TensorType::Q4_1> {
  static constexpr std::size_t kBytes = 20;
  static constexpr bool kMins = true;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float& m) {
    for (int i = 0; i < 16; ++i) {
      codes[i] = static_cast<std::int8_t>(block[4 + i] & 15);
      codes[i + 16] = static_cast<std::int8_t>(block[4 + i] >> 4);
    }
    d = half_at(block);
    m = half_at(block + 2);
  }
};

inline void unpack_five_bits(const std::uint8_t* quants, std::uint32_t high, int offset, std::int8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    const int low_code = (quants[i] & 15) | static_cast<int>((high >> i) & 1u) << 4;
    const int high_code = (quants[i] >> 4) | static_cast<int>((high >> (i + 16)) & 1u) << 4;
    codes[i] = static_cast<std::int8_t>(low_code - offset);
    codes[i + 16] = static_cast<std::int8_t>(high_code - offset);
  }
}

template <>
struct BlockFormat<TensorType::Q5_0> {
  static constexpr std::size_t kBytes = 22;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float&) {
    unpack_five_bits(block + 6, load_as<std::uint32_t>(block + 2), 16, codes);
    d = half_at(block);
  }
};

template <>
struct BlockFormat<TensorType::Q5_1> {
  static constexpr std::size_t kBytes = 24;
  static constexpr bool kMins = true;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float& m) {
    unpack_five_bits(block + 8, load_as<std::uint32_t>(block + 4), 0, codes);
    d = half_at(block);
    m = half_at(block + 2);
  }
};

template <>
struct BlockFormat<TensorType::IQ4_NL> {
  static constexpr std::size_t kBytes = 18;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float&) {
    look_up(block + 2, kCodesIq4, codes);
    d = half_at(block);
  }
};

// 2^(exponent - 128); the two smallest exponents are subnormal in float32.
inline float mxfp4_scale(std::uint32_t exponent) {
  return __builtin_bit_cast(float, exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

template <>
struct BlockFormat<TensorType::MXFP4> {
  static constexpr std::size_t kBytes = 17;
  static constexpr bool kMins = false;
  static void unpack(const std::uint8_t* block, std::int8_t* codes, float& d, float&) {
    look_up(block + 1, kCodesMxfp4, codes);
    d = mxfp4_scale(block[0]);
  }
};

// ---- Affine types: 32 values at a time, with the scale and the bias of their group

// What is taken off a code of 8 bits to make it signed, and has to be given back.
template <int kBits>
constexpr std::int32_t kAffineOffset = kBits == 8 ? 128 : 0;

inline float bfloat_at(const std::uint8_t* from) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(load_as<std::uint16_t>(from)) << 16);
}

// The factors of eight blocks of 32, of which the row has `count`.
template <std::size_t kGroup>
inline void spread_factors(const std::uint8_t* from, std::size_t count, float* factors) {
  if (count == 8) {
    for (std::size_t b = 0; b < 8; ++b) factors[b] = bfloat_at(from + 2 * (32 * b / kGroup));
  } else {
    for (std::size_t b = 0; b < 8; ++b) factors[b] = b < count ? bfloat_at(from + 2 * (32 * b / kGroup)) : 0.0f;
  }
}

template <int kBits>
inline void unpack_affine_block(const std::uint8_t* from, std::int8_t* codes) {
  constexpr std::uint64_t kFlip = kBits == 8 ? 0x8080808080808080u : 0;
  for (int eight = 0; eight < 4; ++eight) {
    const std::uint64_t bytes = eight_codes<kBits>(from + eight * kBits) ^ kFlip;
    std::memcpy(codes + 8 * eight, &bytes, sizeof bytes);
  }
}

// `count` blocks; the codes of the others stay what they were, their scales become 0.
template <TensorType kType>
inline void unpack_eight(const std::uint8_t* blocks, std::size_t count, EightBlocks& out) {
  for (std::size_t b = 0; b < 8; ++b) {
    out.d[b] = 0;
    out.m[b] = 0;
    if (b < count) {
      BlockFormat<kType>::unpack(blocks + b * BlockFormat<kType>::kBytes, out.codes + 32 * b, out.d[b], out.m[b]);
    }
  }
}

}  // namespace
}  // namespace moestream::cpu
