// The two loops of the AVX-512 kernels: formats of 256 values per block, and of 32.
//
// A format's `decode` gives a block as four vectors of offset codes in the order of PlanarUnit and its integer scales
// per lane; everything after that is here. With one input (decoding) four rows go together, so that four streams of
// weights are under way and the tree that adds up 16 lanes is shared: 13 instructions for four rows. With more inputs a
// block is decoded once for all of them and the tree is shared by four inputs.
#pragma once

#include "avx512_inputs.h"

namespace moestream::cpu {
namespace {

// Adds up each of four vectors.
[[gnu::always_inline]] inline __m128i four_sums(const __m512i (&v)[4]) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// What decode gives. `scales` and `mins` are per lane, for vectors 0 and 1 and for vectors 2 and 3; formats with one
// scale per 32 values use the first only.
struct PlanarSuper {
  __m512i codes[4];
  __m512i scales[2];
  __m512i mins[2];
};

[[gnu::always_inline]] inline __m512i start_of(const PlanarUnit& unit, int half) {
  return load_as<__m512i>(unit.offsets[half]);
}

[[gnu::always_inline]] inline __m512i add_dots(__m512i sum, const PlanarSuper& block, const PlanarUnit& unit,
                                               int first) {
  sum = _mm512_dpbusd_epi32(sum, block.codes[first], load_as<__m512i>(unit.codes[first]));
  return _mm512_dpbusd_epi32(sum, block.codes[first + 1], load_as<__m512i>(unit.codes[first + 1]));
}

// -offset * the input's sum, from -128 * it.
template <int kOffset>
[[gnu::always_inline]] inline __m512i start_from(__m512i offsets) {
  if constexpr (kOffset == 0) return _mm512_setzero_si512();
  if constexpr (kOffset == 128) return offsets;
  return _mm512_srai_epi32(offsets, __builtin_ctz(128 / (kOffset == 0 ? 128 : kOffset)));
}

template <class Format>
[[gnu::always_inline]] inline __m512i whole_start(const PlanarUnit& unit) {
  if constexpr (Format::kForm == InputForm::kQuads256) return start_of(unit, 0);
  return _mm512_add_epi32(start_of(unit, 0), start_of(unit, 1));
}

// 16 lanes that add up to isum.
template <class Format>
[[gnu::always_inline]] inline __m512i scaled_dot(const PlanarSuper& block, const PlanarUnit& unit) {
  if constexpr (Format::kHalves == 1) {
    __m512i sum = _mm512_setzero_si512();
    if constexpr (Format::kOffset != 0) {
      sum = start_from<Format::kOffset>(whole_start<Format>(unit));
    }
    sum = add_dots(add_dots(sum, block, unit, 0), block, unit, 2);
    return _mm512_mullo_epi32(sum, block.scales[0]);
  } else {
    const __m512i low = add_dots(start_from<Format::kOffset>(start_of(unit, 0)), block, unit, 0);
    const __m512i high = add_dots(start_from<Format::kOffset>(start_of(unit, 1)), block, unit, 2);
    return _mm512_add_epi32(_mm512_mullo_epi32(low, block.scales[0]), _mm512_mullo_epi32(high, block.scales[1]));
  }
}

// 16 lanes that add up to -128 * imin.
template <class Format>
[[gnu::always_inline]] inline __m512i minimum_dot(const PlanarSuper& block, const PlanarUnit& unit) {
  if constexpr (Format::kHalves == 1) {
    return _mm512_mullo_epi32(_mm512_add_epi32(start_of(unit, 0), start_of(unit, 1)), block.mins[0]);
  } else {
    return _mm512_add_epi32(_mm512_mullo_epi32(start_of(unit, 0), block.mins[0]),
                            _mm512_mullo_epi32(start_of(unit, 1), block.mins[1]));
  }
}

[[gnu::always_inline]] inline __m128 four_floats(__m128i integers, __m128 factor) {
  return _mm_mul_ps(_mm_cvtepi32_ps(integers), factor);
}

// Half floats at the same place of four blocks.
[[gnu::always_inline]] inline __m128 four_halves(const std::uint8_t* const (&blocks)[4], std::size_t at) {
  std::uint16_t halves[4];
  for (int j = 0; j < 4; ++j) halves[j] = load_as<std::uint16_t>(blocks[j] + at);
  return _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<long long>(load_as<std::uint64_t>(halves))));
}

template <class Format>
void super_one_input(const Tile& tile) {
  const std::size_t units = tile.cols / 256;
  const Format format;
  for (std::size_t r = 0; r < tile.rows; r += 4) {
    // Rows that are not there are the last one again; their sums are dropped.
    const std::uint8_t* at[4];
    for (std::size_t j = 0; j < 4; ++j) at[j] = tile.weights + smaller(r + j, tile.rows - 1) * tile.row_bytes;
    __m128 total = _mm_setzero_ps();
    const std::uint8_t* const first_row = at[0];
    for (std::size_t k = 0; k < units; ++k) {
      // The four rows as one stretch of memory, an equal part of it at every step.
      fetch_ahead(first_row + 4 * k * Format::kBytes, 4 * Format::kBytes);
      const PlanarUnit& unit = planar_unit(tile, 0, k);
      __m512i sums[4];
      __m512i minimums[4];
      for (int j = 0; j < 4; ++j) {
        const PlanarSuper block = format.decode(at[j]);
        sums[j] = scaled_dot<Format>(block, unit);
        if constexpr (Format::kMins) minimums[j] = minimum_dot<Format>(block, unit);
      }
      const __m128 d = _mm_mul_ps(four_halves(at, Format::kScaleAt), _mm_set1_ps(Format::kScaleFactor));
      __m128 value = four_floats(four_sums(sums), d);
      if constexpr (Format::kMins) {
        const __m128 dmin = _mm_mul_ps(four_halves(at, Format::kMinAt), _mm_set1_ps(1.0f / 128.0f));
        value = _mm_add_ps(value, four_floats(four_sums(minimums), dmin));
      }
      total = _mm_add_ps(total, _mm_mul_ps(value, _mm_set1_ps(unit.scale[0])));
      for (int j = 0; j < 4; ++j) at[j] += Format::kBytes;
    }
    float out[4];
    std::memcpy(out, &total, sizeof out);
    for (std::size_t j = 0; j < smaller(4, tile.rows - r); ++j) tile.out[r + j] = out[j];
  }
}

// A block of one row, decoded, with its factors.
struct ScaledSuper {
  PlanarSuper block;
  __m128 d;
  __m128 dmin;
};

template <class Format>
[[gnu::always_inline]] inline ScaledSuper scaled_super(const Format& format, const std::uint8_t* at) {
  const float dmin = Format::kMins ? half_at(at + Format::kMinAt) * (1.0f / 128.0f) : 0.0f;
  return {format.decode(at), _mm_set1_ps(half_at(at + Format::kScaleAt) * Format::kScaleFactor), _mm_set1_ps(dmin)};
}

// Adds one block of two rows with inputs 4g .. 4g + kLive - 1. An expert of a prompt's chunk has ten rows or so: computing
// the last ones twice to fill a four would be a tenth of all. Two rows, because ten inputs are more than the nearest cache
// holds: each is loaded once for both.
template <class Format, std::size_t kLive>
[[gnu::always_inline]] inline void add_four_inputs(const Tile& tile, std::size_t g, std::size_t k,
                                                   const ScaledSuper (&rows)[2], __m128 (&totals)[2]) {
  __m512i sums[2][4] = {};
  __m512i minimums[2][4] = {};
  float scales[4] = {};
  for (std::size_t j = 0; j < kLive; ++j) {
    const PlanarUnit& unit = planar_unit(tile, 4 * g + j, k);
    for (int i = 0; i < 2; ++i) {
      sums[i][j] = scaled_dot<Format>(rows[i].block, unit);
      if constexpr (Format::kMins) minimums[i][j] = minimum_dot<Format>(rows[i].block, unit);
    }
    scales[j] = unit.scale[0];
  }
  for (int i = 0; i < 2; ++i) {
    __m128 value = four_floats(four_sums(sums[i]), rows[i].d);
    if constexpr (Format::kMins) value = _mm_add_ps(value, four_floats(four_sums(minimums[i]), rows[i].dmin));
    totals[i] = _mm_add_ps(totals[i], _mm_mul_ps(value, load_as<__m128>(scales)));
  }
}

template <class Format, std::size_t kRest>
void super_inputs(const Tile& tile) {
  const std::size_t groups = tile.input_count / 4;
  const Format format;
  for (std::size_t r = 0; r < tile.rows; r += 2) {
    // A second row that is not there is the first one again.
    const std::size_t next = smaller(r + 1, tile.rows - 1);
    __m128 totals[kTileInputs / 4][2] = {};
    const std::uint8_t* at[2] = {tile.weights + r * tile.row_bytes, tile.weights + next * tile.row_bytes};
    const std::uint8_t* const first_row = at[0];
    for (std::size_t k = 0; k < tile.cols / 256; ++k) {
      fetch_ahead(first_row + 2 * k * Format::kBytes, 2 * Format::kBytes);
      const ScaledSuper rows[2] = {scaled_super(format, at[0]), scaled_super(format, at[1])};
      for (std::size_t g = 0; g < groups; ++g) add_four_inputs<Format, 4>(tile, g, k, rows, totals[g]);
      if constexpr (kRest > 0) add_four_inputs<Format, kRest>(tile, groups, k, rows, totals[groups]);
      for (int i = 0; i < 2; ++i) at[i] += Format::kBytes;
    }
    float out[kTileInputs / 4][2][4];
    std::memcpy(out, totals, sizeof out);
    for (std::size_t t = 0; t < tile.input_count; ++t) {
      tile.out[t * tile.rows + r] = out[t / 4][0][t % 4];
      tile.out[t * tile.rows + next] = out[t / 4][1][t % 4];
    }
  }
}

template <class Format>
void super_many_inputs(const Tile& tile) {
  switch (tile.input_count % 4) {
    case 0:
      return super_inputs<Format, 0>(tile);
    case 1:
      return super_inputs<Format, 1>(tile);
    case 2:
      return super_inputs<Format, 2>(tile);
    default:
      return super_inputs<Format, 3>(tile);
  }
}

template <class Format>
void planar_super(const Tile& tile) {
  if (tile.input_count == 1) {
    super_one_input<Format>(tile);
  } else {
    super_many_inputs<Format>(tile);
  }
}

// ---- Blocks of 32, eight at a time

struct PlanarEight {
  __m512i codes[4];
  __m512 d;  // of block b in lane 2b, 0 in the odd lanes
  __m512 m;
};

// 8 floats to the even lanes.
[[gnu::always_inline]] inline __m512 to_even_lanes(__m256 values) {
  return _mm512_castsi512_ps(_mm512_cvtepu32_epi64(_mm256_castps_si256(values)));
}

// Lane 2b: the sum of lanes 2b and 2b + 1.
[[gnu::always_inline]] inline __m512i add_neighbours(__m512i lanes) {
  return _mm512_add_epi32(lanes, _mm512_srli_epi64(lanes, 32));
}

template <class Format>
[[gnu::always_inline]] inline __m512i eight_dots(const PlanarEight& block, const PlanarUnit& unit) {
  __m512i sum = start_from<Format::kOffset>(start_of(unit, 0));
  for (int i = 0; i < 4; ++i) sum = _mm512_dpbusd_epi32(sum, block.codes[i], load_as<__m512i>(unit.codes[i]));
  return sum;
}

// Sums of whole blocks, per lane, to what they add to the output.
template <class Format>
[[gnu::always_inline]] inline __m512 to_products(__m512i sums, __m512 d, __m512 m, const PlanarUnit& unit) {
  __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), d);
  if constexpr (Format::kMins) {
    // Here the input's own sum is wanted, in both lanes: -1/128 of what is kept, exactly.
    const __m512i offsets = start_of(unit, 0);
    const __m512i both = _mm512_add_epi32(offsets, _mm512_rol_epi64(offsets, 32));
    const __m512 all = _mm512_mul_ps(_mm512_cvtepi32_ps(both), _mm512_set1_ps(-1.0f / 128.0f));
    value = _mm512_add_ps(value, _mm512_mul_ps(all, m));
  }
  return _mm512_mul_ps(value, load_as<__m512>(unit.scale));
}

// Even lane i += even lane i + 8, then + 4, then + 2.
[[gnu::always_inline]] inline float sum_of_even_lanes(__m512 lanes) {
  const __m256 four = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  const __m128 two = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehl_ps(two, two)));
}

// Blocks 8k and after of a row: eight of them, or its last few, which are copied so that nothing behind them is read.
template <class Format>
[[gnu::always_inline]] inline PlanarEight decode_eight(const Format& format, const Tile& tile, std::size_t row,
                                                       std::size_t k) {
  const std::size_t count = tile.cols / 32 - 8 * k;
  const std::uint8_t* const blocks = tile.weights + row * tile.row_bytes + 8 * k * Format::kBytes;
  if constexpr (Format::kGroup == 0) {
    if (count >= 8) return format.decode(blocks);
    std::uint8_t padded[8 * Format::kBytes] = {};
    std::memcpy(padded, blocks, count * Format::kBytes);
    return format.decode(padded);
  } else {
    constexpr std::size_t kSideBytes = 2 * 256 / Format::kGroup;
    const std::size_t side = row * tile.side_row_bytes + k * kSideBytes;
    if (count >= 8) return format.decode(blocks, tile.scales + side, tile.biases + side);
    std::uint8_t padded[8 * Format::kBytes] = {};
    std::uint8_t scales[kSideBytes] = {};
    std::uint8_t biases[kSideBytes] = {};
    std::memcpy(padded, blocks, count * Format::kBytes);
    std::memcpy(scales, tile.scales + side, count * 32 / Format::kGroup * 2);
    std::memcpy(biases, tile.biases + side, count * 32 / Format::kGroup * 2);
    return format.decode(padded, scales, biases);
  }
}

template <class Format>
void eights_one_input(const Tile& tile) {
  const std::size_t blocks = tile.cols / 32;
  const Format format;
  for (std::size_t r = 0; r < tile.rows; r += 4) {
    const std::size_t here = smaller(4, tile.rows - r);
    __m512 lanes[4] = {};
    const std::uint8_t* const first_row = tile.weights + r * tile.row_bytes;
    for (std::size_t k = 0; 8 * k < blocks; ++k) {
      fetch_ahead(first_row + 32 * k * Format::kBytes, 32 * Format::kBytes);
      const PlanarUnit& unit = planar_unit(tile, 0, k);
      for (std::size_t j = 0; j < 4; ++j) {
        const PlanarEight block = decode_eight(format, tile, smaller(r + j, tile.rows - 1), k);
        const __m512i sums = add_neighbours(eight_dots<Format>(block, unit));
        lanes[j] = _mm512_add_ps(lanes[j], to_products<Format>(sums, block.d, block.m, unit));
      }
    }
    for (std::size_t j = 0; j < here; ++j) tile.out[r + j] = sum_of_even_lanes(lanes[j]);
  }
}

// Two rows side by side: the blocks of the first in the even lanes, those of the second in the odd ones. Each row's sum
// needs one lane per block, so a register that holds two saves a third of the instructions behind the dot products.
constexpr __mmask16 kOddLanes = 0xaaaa;

[[gnu::always_inline]] inline __m512 interleave(__m512 first, __m512 second) {
  return _mm512_mask_moveldup_ps(first, kOddLanes, second);
}

[[gnu::always_inline]] inline __m512i add_and_interleave(__m512i first, __m512i second) {
  const __m512i own = _mm512_mask_blend_epi32(kOddLanes, first, second);
  const __m512i other = _mm512_mask_blend_epi32(kOddLanes, second, first);
  return _mm512_add_epi32(own, _mm512_rol_epi64(other, 32));
}

template <class Format>
void eights_many_inputs(const Tile& tile) {
  const std::size_t blocks = tile.cols / 32;
  const Format format;
  for (std::size_t r = 0; r < tile.rows; r += 2) {
    const std::size_t next = smaller(r + 1, tile.rows - 1);
    __m512 lanes[kTileInputs] = {};
    const std::uint8_t* const first_row = tile.weights + r * tile.row_bytes;
    for (std::size_t k = 0; 8 * k < blocks; ++k) {
      fetch_ahead(first_row + 16 * k * Format::kBytes, 16 * Format::kBytes);
      const PlanarEight first = decode_eight(format, tile, r, k);
      const PlanarEight second = decode_eight(format, tile, next, k);
      const __m512 d = interleave(first.d, second.d);
      const __m512 m = Format::kMins ? interleave(first.m, second.m) : d;
      for (std::size_t t = 0; t < tile.input_count; ++t) {
        const PlanarUnit& unit = planar_unit(tile, t, k);
        const __m512i sums = add_and_interleave(eight_dots<Format>(first, unit), eight_dots<Format>(second, unit));
        lanes[t] = _mm512_add_ps(lanes[t], to_products<Format>(sums, d, m, unit));
      }
    }
    for (std::size_t t = 0; t < tile.input_count; ++t) {
      tile.out[t * tile.rows + next] = sum_of_even_lanes(_mm512_movehdup_ps(lanes[t]));
      tile.out[t * tile.rows + r] = sum_of_even_lanes(lanes[t]);
    }
  }
}

template <class Format>
void planar_eights(const Tile& tile) {
  if (tile.input_count == 1) {
    eights_one_input<Format>(tile);
  } else {
    eights_many_inputs<Format>(tile);
  }
}

}  // namespace
}  // namespace moestream::cpu
