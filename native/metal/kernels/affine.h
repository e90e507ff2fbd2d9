// MLX's affine formats: codes of 2 to 8 bits, packed low bits first without gaps, and apart from them a scale and a bias
// (bfloat16) for every 32, 64 or 128 columns: value = scale * code + bias.
//
// A part is 16 columns: 2 * bits bytes of codes, of one group, whatever the size of the groups. So the bits are a type's
// and the group's size is an argument. Checkpoints have no padding before their data, so the three arrays begin at any
// byte: the host binds the multiple of kAffineAlign below and says how far beyond it they begin. Only words that have a
// wanted byte in them are read.
#pragma once

#include <metal_stdlib>

#include "arguments.h"
#include "formats.h"
#include "products.h"

namespace moestream {
namespace gpu {

template <uint kBits>
struct Affine {
  enum : uint {
    kCodeBits = kBits,
    kBlockValues = 16,
    kBlockBytes = 2 * kBits,
    kPart = 16,
    kScales = 1,
    kHasMinimum = 1,
    kBookWords = 1,
    kWords = (2 * kBits + 3) / 4,  // that a part's bytes touch where it begins at a word or, with odd bits, between two
  };
  static uint column(uint, uint run) { return 4 * run; }
  static uint book_word(uint) { return 0; }
};

// 113 -> 109 us and 125 -> 116 where docs/kernels.md measures; other widths take their words apart longer and lose.
template <>
struct TurnedRuns<Affine<4>> {
  enum : uint { kUsed = 1 };
};
template <>
struct TurnedRuns<Affine<8>> {
  enum : uint { kUsed = 1 };
};

// An affine matrix as it is bound, or what begins with one of its rows.
struct AffineArrays {
  device const uchar *codes;  // all three from multiples of kAffineAlign bytes, which are `skews` before the first one's
  device const uchar *scales;
  device const uchar *biases;
  uint skews;        // of codes, scales and biases, a byte each
  uint group_shift;  // 5, 6 or 7: a group has 1 << group_shift columns
};

static inline AffineArrays affine_arrays(device const uchar *codes, device const uchar *scales, device const uchar *biases,
                                         constant AffineArguments &arguments, uint matrix) {
  AffineArrays arrays;
  arrays.codes = codes;
  arrays.scales = scales;
  arrays.biases = biases;
  arrays.skews = arguments.skews[matrix];
  arrays.group_shift = arguments.group_shift;
  return arrays;
}

// Rows of codes are whole words long, as groups have at least 32 columns; those of scales are an even number of bytes.
template <class F>
static inline AffineArrays row_of(AffineArrays matrix, uint row, uint cols) {
  const ulong before = ulong(row) * (cols >> matrix.group_shift) * 2;
  AffineArrays found = matrix;
  found.codes = matrix.codes + ulong(row) * (cols / 16 * uint(F::kBlockBytes));
  found.scales = matrix.scales + before;
  found.biases = matrix.biases + before;
  return found;
}

// The bfloat16 at `skew` bytes and `index` numbers.
static inline float load_bfloat(device const uchar *from, uint skew, uint index) {
  device const uchar *at = from + skew + 2 * index;
  const uint bits = skew % 2 == 0 ? load_u16(at) : uint(at[0]) | uint(at[1]) << 8;
  return as_type<float>(bits << 16);
}

static inline float affine_scale(AffineArrays row, uint group) {
  return load_bfloat(row.scales, (row.skews >> 8) & 255u, group);
}

static inline float affine_bias(AffineArrays row, uint group) {
  return load_bfloat(row.biases, (row.skews >> 16) & 255u, group);
}

// The words of 16 codes that begin at byte `at`; bits beyond the codes are anything.
template <class F>
static inline void load_codes(device const uchar *codes, uint at, thread uint *words) {
  device const uint *from = (device const uint *)codes + at / 4;
#pragma unroll
  for (uint i = 0; i < uint(F::kWords); ++i) words[i] = from[i];
  const uint inside = at % 4;
  if (inside == 0) return;
  const uint beyond = inside + uint(F::kBlockBytes) > 4 * uint(F::kWords) ? from[uint(F::kWords)] : 0;
  const uint shift = 8 * inside;
#pragma unroll
  for (uint i = 0; i < uint(F::kWords); ++i) {
    const uint next = i + 1 < uint(F::kWords) ? words[i + 1] : beyond;
    words[i] = words[i] >> shift | next << (32 - shift);
  }
}

// Four codes from the lowest bits of `word`.
template <class F>
static inline float4 lowest_codes(uint word) {
  const uint bits = uint(F::kCodeBits);
  const uint mask = (1u << bits) - 1;
  const uint exponent = 0x4b000000u;
  return float4(as_type<float>(exponent | (word & mask)), as_type<float>(exponent | ((word >> bits) & mask)),
                as_type<float>(exponent | ((word >> (2 * bits)) & mask)),
                as_type<float>(exponent | ((word >> (3 * bits)) & mask))) -
         kMagic;
}

template <class F>
static inline void unpack_part(AffineArrays row, uint block, uint, threadgroup const uint *, thread Part<F> &out) {
  uint words[F::kWords];
  load_codes<F>(row.codes, (row.skews & 255u) + block * uint(F::kBlockBytes), words);
#pragma unroll
  for (uint run = 0; run < 4; ++run) {
    const uint bit = 4 * uint(F::kCodeBits) * run;
    uint four = words[bit / 32] >> (bit % 32);
    if (bit % 32 + 4 * uint(F::kCodeBits) > 32) four |= words[bit / 32 + 1] << (32 - bit % 32);
    out.codes[run] = lowest_codes<F>(four);
  }
  const uint group = (16 * block) >> row.group_shift;
  out.scales[0] = affine_scale(row, group);
  out.minimums[0] = -affine_bias(row, group);
}

}  // namespace gpu
}  // namespace moestream
