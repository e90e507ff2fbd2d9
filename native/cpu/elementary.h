// The elementary functions of the forward pass.
//
// A system's expf may differ in the last bit from another's, and from itself on a processor with fused multiply-add.
// This exp is a fixed sequence of double operations: the same bits everywhere, and one the compiler can vectorise. Its
// error before rounding is below 1e-14, so the float result is the correctly rounded one but for about one in 10^6.
// It is inlined always, because files with instruction sets of their own use it.
#pragma once

#include <cmath>
#include <cstdint>

namespace moestream::cpu {

[[gnu::always_inline]] inline float exp_float(float x) {
  // Beyond these the float result is 0 or infinity anyway; inside them every double below is a normal number.
  const double low_clamped = x < -104.0f ? -104.0 : static_cast<double>(x);
  const double clamped = low_clamped > 89.0 ? 89.0 : low_clamped;
  // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the sum.
  constexpr double kRound = 0x1.8p+52;
  const double shifted = clamped * 0x1.71547652b82fep+0 + kRound;
  const double power = shifted - kRound;
  const double r = clamped - power * 0x1.62e42fefa39efp-1;  // |r| <= ln(2) / 2
  double sum = 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  const std::uint64_t exponent = (__builtin_bit_cast(std::uint64_t, shifted) + 1023u) << 52;
  return static_cast<float>(sum * __builtin_bit_cast(double, exponent));
}

[[gnu::always_inline]] inline float sigmoid(float x) { return 1.0f / (1.0f + exp_float(-x)); }

[[gnu::always_inline]] inline float silu(float x) { return x * sigmoid(x); }

// Once per DeltaNet head and token, so the library's double precision is cheap enough.
inline float softplus(float x) {
  return x > 20.0f ? x : static_cast<float>(std::log1p(std::exp(static_cast<double>(x))));
}

}  // namespace moestream::cpu
