// The block formats of model files, each as a struct of the same shape, so that one template serves every product.
//
// A lane takes a part of a block at a time: kPart values, in runs of four neighbouring columns, that share loads and
// scales. A value is scale * code - minimum, in the arithmetic of the format: what a part unpacks to has the bits that
// the CPU's dequantisation gives. Products sum code * x first and scale once.
//
// Blocks of 18, 34, 66 ... bytes start at even addresses, so most words are loaded as two halves.
#pragma once

#include <metal_stdlib>

#include "codebooks.h"

namespace moestream {
namespace gpu {

template <class F>
struct Part {
  float4 codes[F::kPart / 4];
  float scales[F::kScales];
  float minimums[F::kScales];
};

// Neighbouring 32-bit words of four codes become floats by their bit pattern: 2^23 + code has the code in its low bits,
// and one exact subtraction takes 2^23 and the code's offset off. Conversions of integers run at a quarter of the rate.
constant constexpr float kMagic = 8388608.0f;

static inline float4 four_codes(uint bytes, float offset) {
  const uint exponent = 0x4b000000u;
  return float4(as_type<float>(exponent | (bytes & 255u)), as_type<float>(exponent | ((bytes >> 8) & 255u)),
                as_type<float>(exponent | ((bytes >> 16) & 255u)), as_type<float>(exponent | (bytes >> 24))) -
         (kMagic + offset);
}

static inline uint load_u16(device const uchar *from) { return uint(*(device const ushort *)from); }
static inline uint load_u32_even(device const uchar *from) { return load_u16(from) | load_u16(from + 2) << 16; }
static inline float load_half(device const uchar *from) { return float(*(device const half *)from); }
static inline uint load_u32_bytes(device const uchar *from) {
  return uint(from[0]) | uint(from[1]) << 8 | uint(from[2]) << 16 | uint(from[3]) << 24;
}

static inline uint low_nibbles(uint bytes) { return bytes & 0x0f0f0f0fu; }
static inline uint high_nibbles(uint bytes) { return (bytes >> 4) & 0x0f0f0f0fu; }

// Bit i of four to the lowest bit of byte i.
static inline uint spread(uint four_bits) { return (four_bits * 0x00204081u) & 0x01010101u; }

static inline uint nibble(uint byte, uint which) { return (byte >> (4 * which)) & 15u; }

// Plain numbers: every lane takes 16 bytes. Those of 32 bits may start at any multiple of four.
struct F32 {
  enum : uint { kBlockValues = 4, kBlockBytes = 16, kPart = 4, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint, uint) { return 0; }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint, threadgroup const uint *, thread Part<F32> &out) {
    out.codes[0] = float4(*(device const packed_float4 *)block);
    out.scales[0] = 1.0f;
  }
};

struct F16 {
  enum : uint { kBlockValues = 8, kBlockBytes = 16, kPart = 8, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint, uint run) { return 4 * run; }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint, threadgroup const uint *, thread Part<F16> &out) {
    const uint4 words = *(device const uint4 *)block;
    for (uint run = 0; run < 2; ++run) {
      const half2 first = as_type<half2>(words[2 * run]);
      const half2 second = as_type<half2>(words[2 * run + 1]);
      out.codes[run] = float4(float(first[0]), float(first[1]), float(second[0]), float(second[1]));
    }
    out.scales[0] = 1.0f;
  }
};

struct BF16 {
  enum : uint { kBlockValues = 8, kBlockBytes = 16, kPart = 8, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint, uint run) { return 4 * run; }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint, threadgroup const uint *, thread Part<BF16> &out) {
    const uint4 words = *(device const uint4 *)block;
    for (uint run = 0; run < 2; ++run) {
      const uint first = words[2 * run];
      const uint second = words[2 * run + 1];
      out.codes[run] = float4(as_type<float>(first << 16), as_type<float>(first & 0xffff0000u),
                              as_type<float>(second << 16), as_type<float>(second & 0xffff0000u));
    }
    out.scales[0] = 1.0f;
  }
};

// Blocks of 32.
// d f16 | q i8[32]
struct Q8_0 {
  enum : uint { kBlockValues = 32, kBlockBytes = 34, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint part, uint run) { return 16 * part + 4 * run; }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q8_0> &out) {
#pragma unroll
    for (uint run = 0; run < 4; ++run) {
      const uint bytes = load_u32_even(block + 2 + 16 * part + 4 * run);
      out.codes[run] = four_codes(bytes ^ 0x80808080u, 128.0f);
    }
    out.scales[0] = load_half(block);
  }
};

// The nibble formats of 32: byte i holds value i in its low and value i + 16 in its high nibble.
static inline uint nibble_column(uint part, uint run) { return 16 * (run / 2) + 8 * part + 4 * (run % 2); }

// d f16 | q nibbles[16]
struct Q4_0 {
  enum : uint { kBlockValues = 32, kBlockBytes = 18, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q4_0> &out) {
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_even(block + 2 + 8 * part + 4 * half_run);
      out.codes[half_run] = four_codes(low_nibbles(bytes), 8.0f);
      out.codes[half_run + 2] = four_codes(high_nibbles(bytes), 8.0f);
    }
    out.scales[0] = load_half(block);
  }
};

// d f16 | m f16 | q nibbles[16]
struct Q4_1 {
  enum : uint { kBlockValues = 32, kBlockBytes = 20, kPart = 16, kScales = 1, kHasMinimum = 1, kBookWords = 1 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q4_1> &out) {
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_even(block + 4 + 8 * part + 4 * half_run);
      out.codes[half_run] = four_codes(low_nibbles(bytes), 0.0f);
      out.codes[half_run + 2] = four_codes(high_nibbles(bytes), 0.0f);
    }
    out.scales[0] = load_half(block);
    out.minimums[0] = -load_half(block + 2);
  }
};

// d f16 | fifth bits u32 | q nibbles[16]
struct Q5_0 {
  enum : uint { kBlockValues = 32, kBlockBytes = 22, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q5_0> &out) {
    const uint fifth = load_u32_even(block + 2) >> (8 * part);
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_even(block + 6 + 8 * part + 4 * half_run);
      const uint bits = fifth >> (4 * half_run);
      out.codes[half_run] = four_codes(low_nibbles(bytes) | spread(bits & 15u) << 4, 16.0f);
      out.codes[half_run + 2] = four_codes(high_nibbles(bytes) | spread((bits >> 16) & 15u) << 4, 16.0f);
    }
    out.scales[0] = load_half(block);
  }
};

// d f16 | m f16 | fifth bits u32 | q nibbles[16]
struct Q5_1 {
  enum : uint { kBlockValues = 32, kBlockBytes = 24, kPart = 16, kScales = 1, kHasMinimum = 1, kBookWords = 1 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q5_1> &out) {
    const uint fifth = load_u32_even(block + 4) >> (8 * part);
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_even(block + 8 + 8 * part + 4 * half_run);
      const uint bits = fifth >> (4 * half_run);
      out.codes[half_run] = four_codes(low_nibbles(bytes) | spread(bits & 15u) << 4, 0.0f);
      out.codes[half_run + 2] = four_codes(high_nibbles(bytes) | spread((bits >> 16) & 15u) << 4, 0.0f);
    }
    out.scales[0] = load_half(block);
    out.minimums[0] = -load_half(block + 2);
  }
};

// Four entries of a table of 16 floats.
static inline float4 four_entries(threadgroup const uint *table, uint nibbles) {
  return float4(as_type<float>(table[nibbles & 15u]), as_type<float>(table[(nibbles >> 8) & 15u]),
                as_type<float>(table[(nibbles >> 16) & 15u]), as_type<float>(table[(nibbles >> 24) & 15u]));
}

// d f16 | q nibbles[16]
struct IQ4_NL {
  enum : uint { kBlockValues = 32, kBlockBytes = 18, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 16 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint i) { return as_type<uint>(kValuesIq4[i]); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ4_NL> &out) {
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_even(block + 2 + 8 * part + 4 * half_run);
      out.codes[half_run] = four_entries(book, bytes);
      out.codes[half_run + 2] = four_entries(book, bytes >> 4);
    }
    out.scales[0] = load_half(block);
  }
};

// exponent u8 | q nibbles[16]. The table holds doubled values, so the scale is 2^(exponent - 128).
struct MXFP4 {
  enum : uint { kBlockValues = 32, kBlockBytes = 17, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 16 };
  static uint column(uint part, uint run) { return nibble_column(part, run); }
  static uint book_word(uint i) { return as_type<uint>(kValuesMxfp4[i]); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<MXFP4> &out) {
#pragma unroll
    for (uint half_run = 0; half_run < 2; ++half_run) {
      const uint bytes = load_u32_bytes(block + 1 + 8 * part + 4 * half_run);
      out.codes[half_run] = four_entries(book, bytes);
      out.codes[half_run + 2] = four_entries(book, bytes >> 4);
    }
    const uint exponent = uint(block[0]);
    out.scales[0] = as_type<float>(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
  }
};

// Super-blocks of 256.
// Q2_K and Q3_K keep four planes of 32 values in each 32 bytes: a part is four bytes of all planes, a run is a plane.
static inline uint plane_column(uint part, uint run) { return 128 * (part / 8) + 32 * run + 4 * (part % 8); }

// scales u8[16] (low nibble scale, high nibble minimum) | q 2 bit[256] | d f16 | dmin f16
struct Q2_K {
  enum : uint { kBlockValues = 256, kBlockBytes = 84, kPart = 16, kScales = 4, kHasMinimum = 1, kBookWords = 1 };
  static uint column(uint part, uint run) { return plane_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q2_K> &out) {
    const uint bytes = load_u32_even(block + 16 + 4 * part);
    const float d = load_half(block + 80);
    const float dmin = load_half(block + 82);
    device const uchar *scales = block + 8 * (part / 8) + part % 8 / 4;
#pragma unroll
    for (uint plane = 0; plane < 4; ++plane) {
      const uint packed = uint(scales[2 * plane]);
      out.codes[plane] = four_codes((bytes >> (2 * plane)) & 0x03030303u, 0.0f);
      out.scales[plane] = d * float(packed & 15u);
      out.minimums[plane] = dmin * float(packed >> 4);
    }
  }
};

// high bits[32] | q 2 bit[256] | scales 6 bit[16] | d f16
struct Q3_K {
  enum : uint { kBlockValues = 256, kBlockBytes = 110, kPart = 16, kScales = 4, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint part, uint run) { return plane_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q3_K> &out) {
    const uint bytes = load_u32_even(block + 32 + 4 * part);
    const uint high = load_u32_even(block + 4 * (part % 8)) >> (4 * (part / 8));
    const float d = load_half(block + 108);
    device const uchar *scales = block + 96;
#pragma unroll
    for (uint plane = 0; plane < 4; ++plane) {
      const uint s = 8 * (part / 8) + 2 * plane + part % 8 / 4;
      const uint low4 = nibble(uint(scales[s % 8]), s / 8);
      const uint high2 = (uint(scales[8 + s % 4]) >> (2 * (s / 4))) & 3u;
      const uint low = (bytes >> (2 * plane)) & 0x03030303u;
      out.codes[plane] = four_codes(low | ((high >> plane) & 0x01010101u) << 2, 4.0f);
      out.scales[plane] = d * (float(low4 | high2 << 4) - 32.0f);
    }
  }
};

// Q4_K and Q5_K: 64 values are 32 bytes, the low nibbles first; a part is eight bytes.
static inline uint pair_column(uint part, uint run) {
  return 64 * (part / 4) + 8 * (part % 4) + 32 * (run / 2) + 4 * (run % 2);
}

// Two neighbouring 6-bit scales and minimums (of sub-blocks 2g and 2g + 1), in the low bytes of scales and minimums.
struct PairScales {
  uint scales;
  uint minimums;
};

static inline PairScales pair_scales(device const uchar *packed, uint g) {
  PairScales found;
  if (g < 2) {
    found.scales = load_u16(packed + 2 * g) & 0x3f3fu;
    found.minimums = load_u16(packed + 4 + 2 * g) & 0x3f3fu;
  } else {
    const uint low = load_u16(packed + 4 + 2 * g);
    found.scales = (low & 0x0f0fu) | ((load_u16(packed + 2 * g - 4) >> 2) & 0x3030u);
    found.minimums = ((low >> 4) & 0x0f0fu) | ((load_u16(packed + 2 * g) >> 2) & 0x3030u);
  }
  return found;
}

template <class F>
static inline void set_pair_scales(device const uchar *block, uint g, thread Part<F> &out) {
  const float d = load_half(block);
  const float dmin = load_half(block + 2);
  const PairScales packed = pair_scales(block + 4, g);
  out.scales[0] = d * float(packed.scales & 255u);
  out.scales[1] = d * float(packed.scales >> 8);
  out.minimums[0] = dmin * float(packed.minimums & 255u);
  out.minimums[1] = dmin * float(packed.minimums >> 8);
}

// d f16 | dmin f16 | scales 6 bit[16] | q nibbles[128]
struct Q4_K {
  enum : uint { kBlockValues = 256, kBlockBytes = 144, kPart = 16, kScales = 2, kHasMinimum = 1, kBookWords = 1 };
  static uint column(uint part, uint run) { return pair_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q4_K> &out) {
    const uint2 words = *(device const uint2 *)(block + 16 + 8 * part);
#pragma unroll
    for (uint run = 0; run < 2; ++run) {
      out.codes[run] = four_codes(low_nibbles(words[run]), 0.0f);
      out.codes[run + 2] = four_codes(high_nibbles(words[run]), 0.0f);
    }
    set_pair_scales(block, part / 4, out);
  }
};

// As Q4_K with the fifth bit of value i of sub-block b in bit b of high[i]: high[32] stands before q.
struct Q5_K {
  enum : uint { kBlockValues = 256, kBlockBytes = 176, kPart = 16, kScales = 2, kHasMinimum = 1, kBookWords = 1 };
  static uint column(uint part, uint run) { return pair_column(part, run); }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q5_K> &out) {
    const uint2 words = *(device const uint2 *)(block + 48 + 8 * part);
    const uint2 high = *(device const uint2 *)(block + 16 + 8 * (part % 4));
    const uint first = 2 * (part / 4);
#pragma unroll
    for (uint run = 0; run < 2; ++run) {
      const uint bits = high[run] >> first;
      out.codes[run] = four_codes(low_nibbles(words[run]) | (bits & 0x01010101u) << 4, 0.0f);
      out.codes[run + 2] = four_codes(high_nibbles(words[run]) | ((bits >> 1) & 0x01010101u) << 4, 0.0f);
    }
    set_pair_scales(block, part / 4, out);
  }
};

// low nibbles[128] | high 2 bit[64] | scales i8[16] | d f16. A part is eight bytes of low nibbles: the low ones belong
// to a quarter of 32 values, the high ones to the quarter two further on.
struct Q6_K {
  enum : uint { kBlockValues = 256, kBlockBytes = 210, kPart = 16, kScales = 2, kHasMinimum = 0, kBookWords = 1 };
  static uint column(uint part, uint run) {
    return 128 * (part / 8) + 32 * (part % 8 / 4) + 8 * (part % 4) + 64 * (run / 2) + 4 * (run % 2);
  }
  static uint book_word(uint) { return 0; }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *, thread Part<Q6_K> &out) {
    const uint quarter = part % 8 / 4;
#pragma unroll
    for (uint run = 0; run < 2; ++run) {
      const uint low = load_u32_even(block + 8 * part + 4 * run);
      const uint high = load_u32_even(block + 128 + 32 * (part / 8) + 8 * (part % 4) + 4 * run) >> (2 * quarter);
      out.codes[run] = four_codes(low_nibbles(low) | (high & 0x03030303u) << 4, 32.0f);
      out.codes[run + 2] = four_codes(high_nibbles(low) | ((high >> 4) & 0x03030303u) << 4, 32.0f);
    }
    device const uchar *scales = block + 192 + 8 * (part / 8) + 2 * quarter + part % 4 / 2;
    const float d = load_half(block + 208);
    out.scales[0] = d * float(int(as_type<char>(scales[0])));
    out.scales[1] = d * float(int(as_type<char>(scales[4])));
  }
};

// d f16 | scales high 2 bit[8] | scales low nibbles[4] | q nibbles[128]
struct IQ4_XS {
  enum : uint { kBlockValues = 256, kBlockBytes = 136, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 16 };
  static uint column(uint part, uint run) { return 32 * (part / 2) + nibble_column(part % 2, run); }
  static uint book_word(uint i) { return as_type<uint>(kValuesIq4[i]); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ4_XS> &out) {
    const uint2 words = *(device const uint2 *)(block + 8 + 8 * part);
    const uint b = part / 2;
#pragma unroll
    for (uint run = 0; run < 2; ++run) {
      out.codes[run] = four_entries(book, words[run]);
      out.codes[run + 2] = four_entries(book, words[run] >> 4);
    }
    const uint low = nibble(uint(block[4 + b / 2]), b % 2);
    const uint high = (load_u16(block + 2) >> (2 * b)) & 3u;
    out.scales[0] = load_half(block) * (float(low | high << 4) - 32.0f);
  }
};

// The codebook formats: magnitudes from a table in bytes, signs apart. A part is 16 neighbouring values.
static inline uint plain_column(uint part, uint run) { return 16 * part + 4 * run; }

// Eight signs are stored in seven bits: their number of minuses is even.
static inline uint eight_signs(uint seven) { return seven | (popcount(seven) & 1u) << 7; }

// Four magnitudes with signs: each byte negated where its bit of `signs` is set.
static inline float4 four_signed(uint magnitudes, uint signs) {
  const uint negative = spread(signs & 15u);
  const uint bytes = (magnitudes ^ (negative * 255u)) + negative;
  return four_codes(bytes ^ 0x80808080u, 128.0f);
}

// d f16 | 8 x { index u8[4] | signs 4x7 bit, scale 4 bit u32 }
struct IQ2_XXS {
  enum : uint { kBlockValues = 256, kBlockBytes = 66, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 512 };
  static uint column(uint part, uint run) { return plain_column(part, run); }
  static uint book_word(uint i) { return four_of_iq2(kPackedIq2Xxs[i / 2], i % 2); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ2_XXS> &out) {
    device const uchar *sub_block = block + 2 + 8 * (part / 2);
    const uint indices = load_u16(sub_block + 2 * (part % 2));
    const uint packed = load_u32_even(sub_block + 4);
#pragma unroll
    for (uint group = 0; group < 2; ++group) {
      const uint entry = 2 * ((indices >> (8 * group)) & 255u);
      const uint signs = eight_signs((packed >> (14 * (part % 2) + 7 * group)) & 127u);
      out.codes[2 * group] = four_signed(book[entry], signs);
      out.codes[2 * group + 1] = four_signed(book[entry + 1], signs >> 4);
    }
    out.scales[0] = load_half(block) * (0.5f + float(packed >> 28)) * 0.25f;
  }
};

// d f16 | { index 9 bit, signs 7 bit } u16[32] | scales nibbles[8]
struct IQ2_XS {
  enum : uint { kBlockValues = 256, kBlockBytes = 74, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 1024 };
  static uint column(uint part, uint run) { return plain_column(part, run); }
  static uint book_word(uint i) { return four_of_iq2(kPackedIq2Xs[i / 2], i % 2); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ2_XS> &out) {
    const uint both = load_u32_even(block + 2 + 4 * part);
#pragma unroll
    for (uint group = 0; group < 2; ++group) {
      const uint packed = (both >> (16 * group)) & 0xffffu;
      const uint entry = 2 * (packed & 511u);
      const uint signs = eight_signs(packed >> 9);
      out.codes[2 * group] = four_signed(book[entry], signs);
      out.codes[2 * group + 1] = four_signed(book[entry + 1], signs >> 4);
    }
    const uint scale = nibble(uint(block[66 + part / 2]), part % 2);
    out.scales[0] = load_half(block) * (0.5f + float(scale)) * 0.25f;
  }
};

// d f16 | index low u8[32] | signs u8[32] | index high 2 bit[32] | scales nibbles[8]
struct IQ2_S {
  enum : uint { kBlockValues = 256, kBlockBytes = 82, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 2048 };
  static uint column(uint part, uint run) { return plain_column(part, run); }
  static uint book_word(uint i) { return four_of_iq2(kPackedIq2S[i / 2], i % 2); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ2_S> &out) {
    const uint low = load_u16(block + 2 + 2 * part);
    const uint signs = load_u16(block + 34 + 2 * part);
    const uint high = uint(block[66 + part / 2]) >> (4 * (part % 2));
#pragma unroll
    for (uint group = 0; group < 2; ++group) {
      const uint entry = 2 * (((low >> (8 * group)) & 255u) | ((high >> (2 * group)) & 3u) << 8);
      const uint eight = signs >> (8 * group);
      out.codes[2 * group] = four_signed(book[entry], eight);
      out.codes[2 * group + 1] = four_signed(book[entry + 1], eight >> 4);
    }
    const uint scale = nibble(uint(block[74 + part / 2]), part % 2);
    out.scales[0] = load_half(block) * (0.5f + float(scale)) * 0.25f;
  }
};

// d f16 | index u8[64] | { signs 4x7 bit, scale 4 bit } u32[8]
struct IQ3_XXS {
  enum : uint { kBlockValues = 256, kBlockBytes = 98, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 256 };
  static uint column(uint part, uint run) { return plain_column(part, run); }
  static uint book_word(uint i) { return four_of_iq3_xxs(kPackedIq3Xxs[i]); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ3_XXS> &out) {
    const uint indices = load_u32_even(block + 2 + 4 * part);
    const uint packed = load_u32_even(block + 66 + 4 * (part / 2));
#pragma unroll
    for (uint group = 0; group < 2; ++group) {
      const uint signs = eight_signs((packed >> (14 * (part % 2) + 7 * group)) & 127u);
      out.codes[2 * group] = four_signed(book[(indices >> (16 * group)) & 255u], signs);
      out.codes[2 * group + 1] = four_signed(book[(indices >> (16 * group + 8)) & 255u], signs >> 4);
    }
    out.scales[0] = load_half(block) * (0.5f + float(packed >> 28)) * 0.5f;
  }
};

// d f16 | index low u8[64] | index high 1 bit[64] | signs u8[32] | scales nibbles[4]
struct IQ3_S {
  enum : uint { kBlockValues = 256, kBlockBytes = 110, kPart = 16, kScales = 1, kHasMinimum = 0, kBookWords = 512 };
  static uint column(uint part, uint run) { return plain_column(part, run); }
  static uint book_word(uint i) { return four_of_iq3_s(kPackedIq3S[i]); }
  static void unpack(device const uchar *block, uint part, threadgroup const uint *book, thread Part<IQ3_S> &out) {
    const uint low = load_u32_even(block + 2 + 4 * part);
    const uint high = uint(block[66 + part / 2]) >> (4 * (part % 2));
    const uint signs = load_u16(block + 74 + 2 * part);
#pragma unroll
    for (uint run = 0; run < 4; ++run) {
      const uint entry = ((low >> (8 * run)) & 255u) | ((high >> run) & 1u) << 8;
      out.codes[run] = four_signed(book[entry], signs >> (4 * run));
    }
    const uint b = part / 2;
    out.scales[0] = load_half(block) * float(1u + 2u * nibble(uint(block[106 + b / 2]), b % 2));
  }
};

// Lays the format's table into threadgroup memory; every thread of the threadgroup calls it.
template <class F>
static inline void fill_book(threadgroup uint *book, uint thread_index, uint threads) {
  if (F::kBookWords == 1) return;
  for (uint i = thread_index; i < F::kBookWords; i += threads) book[i] = F::book_word(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

}  // namespace gpu
}  // namespace moestream
