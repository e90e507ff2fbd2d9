// Products of every type: one row at a time, fused, in tiles, and the embedding.
#include <array>
#include <utility>

#include "../../cpu/elementary.h"
#include "../../cpu/vector_kernels.h"
#include "by_type.h"
#include "material.h"

namespace moestream::gpu {
namespace {

using cpu::TensorType;

// 288 columns are no multiple of what a simdgroup or a tile takes at once; super-blocks of 256 allow 768.
std::size_t odd_cols(TensorType type) { return cpu::traits_of(type).block_values == 256 ? 768 : 288; }

// expected[to[t]][r] = row r . x[from[t]]
std::vector<float> product(const RandomMatrix& matrix, const std::vector<float>& x, const std::vector<std::uint32_t>& from,
                           const std::vector<std::uint32_t>& to, std::size_t output_rows) {
  const std::vector<float> weights = matrix.dequantised();
  std::vector<float> expected(output_rows * matrix.rows);
  for (std::size_t t = 0; t < from.size(); ++t) {
    for (std::size_t r = 0; r < matrix.rows; ++r) {
      expected[to[t] * matrix.rows + r] =
          cpu::vector_kernels().dot(weights.data() + r * matrix.cols, x.data() + from[t] * matrix.cols, matrix.cols);
    }
  }
  return expected;
}

double check_matvec(Runner& runner, TensorType type) {
  Random random(11);
  const std::size_t cols = odd_cols(type);
  const std::array<RandomMatrix, 2> segments{RandomMatrix(type, cols, 13, random), RandomMatrix(type, cols, 5, random)};
  const std::vector<float> x = random.numbers(4 * cols);
  const std::vector<std::uint32_t> from{2, 0, 3};
  const std::vector<std::uint32_t> to{1, 4, 0};
  std::array<std::vector<float>, 2> y{std::vector<float>(5 * 13), std::vector<float>(5 * 5)};
  MatvecArguments arguments{static_cast<uint>(cols), 2, 1, 0, {13, 5, 0, 0}, {0, 2, 0, 0}};
  Dispatch dispatch{"matvec_" + lower_name(type), {}, {3, 3, 1}, kMatvecThreads};
  for (std::uint32_t s = 0; s < 4; ++s) {
    dispatch.buffers.push_back(bound(s, segments[s % 2].bytes));
    dispatch.buffers.push_back(bound(5 + s, y[s % 2]));
  }
  dispatch.buffers.push_back(bound(4, x));
  dispatch.buffers.push_back(bound_arguments(9, arguments));
  dispatch.buffers.push_back(bound(10, from));
  dispatch.buffers.push_back(bound(11, to));
  runner.run(dispatch);
  double worst = 0;
  for (std::size_t s = 0; s < 2; ++s) worst = std::max(worst, distance(y[s], product(segments[s], x, from, to, 5)));
  return worst;
}

double check_gated(Runner& runner, TensorType type) {
  Random random(12);
  const std::size_t cols = odd_cols(type);
  const RandomMatrix gate(type, cols, 6, random);
  const RandomMatrix up(type, cols, 6, random);
  // Small inputs, so that gates are neither shut nor open.
  const std::vector<float> x = random.numbers(2 * cols, 0.01f);
  std::vector<float> y(2 * 6);
  const std::vector<std::uint32_t> rows{0, 1};
  GatedArguments arguments{static_cast<uint>(cols), 6, 0, 0};
  runner.run({"gated_" + lower_name(type),
              {bound(0, gate.bytes), bound(1, up.bytes), bound(2, x), bound(3, y), bound_arguments(4, arguments),
               bound(5, rows), bound(6, rows)},
              {2, 2, 1},
              kMatvecThreads});
  std::vector<float> expected = product(gate, x, rows, rows, 2);
  const std::vector<float> other = product(up, x, rows, rows, 2);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = cpu::silu(expected[i]) * other[i];
  return distance(y, expected);
}

double check_tiles(Runner& runner, TensorType type, const std::string& kernel) {
  Random random(13);
  const std::size_t cols = cpu::traits_of(type).block_values == 256 ? 512 : 160;
  const std::size_t inputs = 35;
  const RandomMatrix matrix(type, cols, 37, random);
  const std::vector<float> x = random.numbers(inputs * cols);
  std::vector<std::uint32_t> from(inputs);
  std::vector<std::uint32_t> to(inputs);
  for (std::uint32_t t = 0; t < inputs; ++t) {
    from[t] = (t * 3) % static_cast<std::uint32_t>(inputs);
    to[t] = static_cast<std::uint32_t>(inputs) - 1 - t;
  }
  std::vector<float> y(inputs * matrix.rows);
  MatmulArguments arguments{static_cast<uint>(cols), 37, static_cast<uint>(inputs), 1};
  runner.run({kernel + lower_name(type),
              {bound(0, matrix.bytes), bound(1, x), bound(2, y), bound_arguments(3, arguments), bound(4, from),
               bound(5, to)},
              {groups_of(matrix.rows, kMatmulRows), groups_of(inputs, kMatmulInputs), 1},
              kMatmulThreads});
  return distance(y, product(matrix, x, from, to, inputs));
}

double check_matmul(Runner& runner, TensorType type) { return check_tiles(runner, type, "matmul_"); }

double check_tensor(Runner& runner, TensorType type) { return check_tiles(runner, type, "tensor_matmul_"); }

double check_embed(Runner& runner, TensorType type) {
  Random random(14);
  const RandomMatrix table(type, odd_cols(type), 9, random);
  const Bound arrays[] = {bound(0, table.bytes)};
  return check_embedding(runner, type, table.dequantised(), arrays);
}

}  // namespace

void add_product_checks(std::vector<Check>& checks) {
  add_for_types(checks, Family::kBlocks, {"matvec_", "segments of 13 and 5 rows, 3 inputs", kTolerance, check_matvec});
  add_for_types(checks, Family::kBlocks, {"gated_", "6 rows, 2 inputs", kTolerance, check_gated});
  add_for_types(checks, Family::kBlocks, {"matmul_", "37 rows, 35 inputs", kTolerance, check_matmul});
  add_for_types(checks, Family::kBlocks, {"embed_", "3 of 9 rows", 0, check_embed});
}

void add_tensor_checks(std::vector<Check>& checks) {
  add_for_types(checks, Family::kBlocks, {"tensor_matmul_", "37 rows, 35 inputs", kTolerance, check_tensor});
  add_affine_tensor_checks(checks);
}

}  // namespace moestream::gpu
