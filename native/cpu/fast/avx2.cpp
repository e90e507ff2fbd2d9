// The products for AVX2 with F16C (Haswell, Zen and later), entered only where the processor has them.
#include "avx2_iq.h"
#include "avx2_unpack.h"
#include "one_sum.h"
#include "sets.h"

namespace moestream::cpu {
namespace {

// Products of signed bytes, four to a lane: vpmaddubsw takes one unsigned operand, so the code's sign moves to the
// input. |code| <= 128 and |input| <= 127 keep a pair's sum within 16 bits.
[[gnu::always_inline]] inline __m256i pair_products(__m256i codes, __m256i input) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(input, codes));
}

[[gnu::always_inline]] inline __m256i block_products(const std::int8_t* codes, const std::int8_t* input) {
  const __m256i pairs = pair_products(load_as<__m256i>(codes), load_as<__m256i>(input));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

[[gnu::always_inline]] inline std::int32_t sum_of_lanes(__m256i lanes) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// Steps of a tree that ends in one sum per vector.
[[gnu::always_inline]] inline __m256i fold32(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

[[gnu::always_inline]] inline __m256i fold64(__m256i a, __m256i b) {
  return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

// spread.bytes[b]: the scales of block b among those of four, over its 16-bit lanes.
struct Spread {
  alignas(32) std::uint8_t bytes[4][32];
};

constexpr Spread make_spread() {
  Spread spread{};
  for (unsigned b = 0; b < 4; ++b) {
    for (unsigned i = 0; i < 32; ++i) spread.bytes[b][i] = static_cast<std::uint8_t>(4 * b + 2 * (i / 16) + i % 2);
  }
  return spread;
}

constexpr Spread kSpread = make_spread();

template <TensorType kType>
constexpr bool kNeverNegative = kType == TensorType::Q2_K || kType == TensorType::Q4_K || kType == TensorType::Q5_K;

struct Avx2 {
  template <TensorType kType>
  [[gnu::always_inline]] static void unpack(const std::uint8_t* from, SuperBlock& block) {
    Avx2Format<kType>::unpack(from, block);
  }

  template <TensorType kType>
  [[gnu::always_inline]] static void unpack_blocks(const std::uint8_t* from, std::size_t count, EightBlocks& blocks) {
    put_blocks<kType>(from, count, blocks);
  }

  template <int kBits>
  [[gnu::always_inline]] static void unpack_affine(const std::uint8_t* from, std::int8_t* codes) {
    put_affine_block<kBits>(from, codes);
  }

  template <TensorType kType>
  [[gnu::always_inline]] static std::int32_t scaled(const std::int8_t* codes, const std::int16_t* scales,
                                                    const std::int8_t* input) {
    const __m256i all = load_as<__m256i>(scales);
    const __m256i low = _mm256_permute2x128_si256(all, all, 0x00);
    const __m256i high = _mm256_permute2x128_si256(all, all, 0x11);
    __m256i sums = _mm256_setzero_si256();
    for (int b = 0; b < 8; ++b) {
      const __m256i spread = _mm256_shuffle_epi8(b < 4 ? low : high, load_as<__m256i>(kSpread.bytes[b % 4]));
      const __m256i code = load_as<__m256i>(codes + 32 * b);
      const __m256i value = load_as<__m256i>(input + 32 * b);
      const __m256i pairs = kNeverNegative<kType> ? _mm256_maddubs_epi16(code, value) : pair_products(code, value);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, spread));
    }
    return sum_of_lanes(sums);
  }

  [[gnu::always_inline]] static std::int32_t minimum(const std::int16_t* mins, const std::int16_t* sums) {
    return sum_of_lanes(_mm256_madd_epi16(load_as<__m256i>(mins), load_as<__m256i>(sums)));
  }

  [[gnu::always_inline]] static void eight(const std::int8_t* codes, const std::int8_t* input, std::int32_t* sums) {
    __m256i halves[2];
    for (int h = 0; h < 2; ++h) {
      __m256i part[4];
      for (int b = 0; b < 4; ++b) part[b] = block_products(codes + 128 * h + 32 * b, input + 128 * h + 32 * b);
      halves[h] = fold64(fold32(part[0], part[1]), fold32(part[2], part[3]));
    }
    const __m256i low = _mm256_permute2x128_si256(halves[0], halves[1], 0x20);
    const __m256i high = _mm256_permute2x128_si256(halves[0], halves[1], 0x31);
    const __m256i all = _mm256_add_epi32(low, high);
    std::memcpy(sums, &all, sizeof all);
  }
};

// IQ3_XXS with one input.
void multiply_iq3_xxs(const Tile& tile) {
  using Format = SuperFormat<TensorType::IQ3_XXS>;
  if (tile.input_count > 1) return multiply_super<TensorType::IQ3_XXS, Avx2>(tile);
  for (std::size_t r = 0; r < tile.rows; ++r) {
    const std::uint8_t* at = tile.weights + r * tile.row_bytes;
    float sum = 0;
    for (std::size_t k = 0; k < tile.cols / 256; ++k, at += Format::kBytes) {
      fetch_ahead(at, Format::kBytes);
      const NaturalUnit& unit = natural_unit(tile, 0, k);
      const std::int32_t product = sum_of_lanes(Avx2Format<TensorType::IQ3_XXS>::dot(at, unit.codes));
      sum += static_cast<float>(product) * (half_at(at) * 0.25f) * unit.scale[0];
    }
    tile.out[r] = sum;
  }
}

TypeKernel kernel_of(TensorType type) {
  if (type == TensorType::IQ3_XXS) return {InputForm::kBlocks256, multiply_iq3_xxs};
  return one_sum_kernel<Avx2>(type);
}

}  // namespace

const ProductKernels kAvx2Products{"avx2", prepare_natural, kernel_of, gate_values};

}  // namespace moestream::cpu
