// MLX's affine formats, which the CPU backend does not read: the reference is their definition.
#include "../../cpu/elementary.h"
#include "../../cpu/vector_kernels.h"
#include "checks.h"
#include "material.h"

namespace moestream::gpu {
namespace {

constexpr std::size_t kGroup = 64;

struct AffineMatrix {
  AffineMatrix(std::uint32_t of_bits, std::size_t of_cols, std::size_t of_rows, Random& random)
      : bits(of_bits), cols(of_cols), rows(of_rows), codes(of_rows * of_cols * of_bits / 32) {
    for (std::uint32_t& each : codes) each = static_cast<std::uint32_t>(random.word() >> 32);
    const auto bfloats = [&] {
      std::vector<std::uint16_t> values(rows * cols / kGroup);
      for (std::uint16_t& each : values) {
        each = static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, random.number()) >> 16);
      }
      return values;
    };
    scales = bfloats();
    biases = bfloats();
  }

  std::vector<float> dequantised() const {
    std::vector<float> values(rows * cols);
    const auto widened = [](std::uint16_t half) {
      return __builtin_bit_cast(float, static_cast<std::uint32_t>(half) << 16);
    };
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint32_t code = codes[i * bits / 32] >> (i * bits % 32) & ((1u << bits) - 1u);
      values[i] = widened(scales[i / kGroup]) * static_cast<float>(code) + widened(biases[i / kGroup]);
    }
    return values;
  }

  std::vector<float> times(const std::vector<float>& x) const {
    const std::vector<float> weights = dequantised();
    std::vector<float> y(rows);
    for (std::size_t r = 0; r < rows; ++r) y[r] = cpu::vector_kernels().dot(weights.data() + r * cols, x.data(), cols);
    return y;
  }

  std::uint32_t bits;
  std::size_t cols;
  std::size_t rows;
  std::vector<std::uint32_t> codes;   // (rows, cols * bits / 32)
  std::vector<std::uint16_t> scales;  // (rows, cols / kGroup), bfloat16
  std::vector<std::uint16_t> biases;
};

double check_matvec(Runner& runner, std::uint32_t bits) {
  Random random(21);
  const std::size_t cols = 704;
  const AffineMatrix matrix(bits, cols, 11, random);
  const std::vector<float> x = random.numbers(cols);
  const std::vector<std::uint32_t> none(1);
  std::vector<float> y(11);
  MatvecArguments arguments{static_cast<uint>(cols), 1, 0, 0, {11, 0, 0, 0}, {0, 0, 0, 0}};
  Dispatch dispatch{"matvec_mlx" + std::to_string(bits), {}, {2, 1, 1}, kMatvecThreads};
  for (std::uint32_t s = 0; s < 4; ++s) {
    dispatch.buffers.push_back(bound(s, matrix.codes));
    dispatch.buffers.push_back(bound(5 + s, y));
    dispatch.buffers.push_back(bound(12 + s, matrix.scales));
    dispatch.buffers.push_back(bound(16 + s, matrix.biases));
  }
  dispatch.buffers.push_back(bound(4, x));
  dispatch.buffers.push_back(bound_arguments(9, arguments));
  dispatch.buffers.push_back(bound(10, none));
  dispatch.buffers.push_back(bound(11, none));
  runner.run(dispatch);
  return distance(y, matrix.times(x));
}

double check_gated(Runner& runner, std::uint32_t bits) {
  Random random(22);
  const std::size_t cols = 192;
  const AffineMatrix gate(bits, cols, 6, random);
  const AffineMatrix up(bits, cols, 6, random);
  const std::vector<float> x = random.numbers(cols, 0.01f);
  const std::vector<std::uint32_t> none(1);
  std::vector<float> y(6);
  GatedArguments arguments{static_cast<uint>(cols), 6, 0, 0};
  runner.run({"gated_mlx" + std::to_string(bits),
              {bound(0, gate.codes), bound(1, up.codes), bound(2, x), bound(3, y), bound_arguments(4, arguments),
               bound(5, none), bound(6, none), bound(7, gate.scales), bound(8, gate.biases), bound(9, up.scales),
               bound(10, up.biases)},
              {2, 1, 1},
              kMatvecThreads});
  std::vector<float> expected = gate.times(x);
  const std::vector<float> other = up.times(x);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = cpu::silu(expected[i]) * other[i];
  return distance(y, expected);
}

}  // namespace

void add_affine_checks(std::vector<Check>& checks) {
  for (const std::uint32_t bits : {4u, 2u}) {
    const std::string name = "mlx" + std::to_string(bits);
    checks.push_back({"matvec_" + name, "11 x 704", kTolerance,
                      [bits](Runner& runner) { return check_matvec(runner, bits); }});
    checks.push_back({"gated_" + name, "6 x 192", kTolerance,
                      [bits](Runner& runner) { return check_gated(runner, bits); }});
  }
}

}  // namespace moestream::gpu
