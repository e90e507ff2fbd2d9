// MLX's affine formats, every width of code with every group, from arrays at any byte.
#include "../../cpu/elementary.h"
#include "../../cpu/vector_kernels.h"
#include "by_type.h"
#include "material.h"

namespace moestream::gpu {
namespace {

using cpu::TensorType;

constexpr ArraySkews kAligned{0, 0, 0};
// Between words, between numbers, and both.
constexpr ArraySkews kSkewed[] = {{1, 3, 2}, {2, 1, 1}, {3, 2, 3}, {2, 2, 0}};

AffineArguments arguments_of(const RandomAffine& first, const RandomAffine& second) {
  return {first.group_shift(), {}, {first.skews.packed(), second.skews.packed(), 0, 0}};
}

// Two matrices in one dispatch, of which each begins at other bytes.
double check_matvec(Runner& runner, TensorType type) {
  Random random(21);
  const std::size_t cols = 640;
  const RandomAffine matrices[] = {{type, cols, 11, kSkewed[0], random}, {type, cols, 5, kAligned, random}};
  const std::vector<float> x = random.numbers(2 * cols);
  const std::vector<std::uint32_t> none(1);
  std::vector<float> y[] = {std::vector<float>(2 * 11), std::vector<float>(2 * 5)};
  MatvecArguments arguments{static_cast<uint>(cols), 2, 0, 0, {11, 5, 0, 0}, {0, 2, 0, 0}};
  AffineArguments affine = arguments_of(matrices[0], matrices[1]);
  Dispatch dispatch{"matvec_" + lower_name(type), {}, {3, 2, 1}, kMatvecThreads};
  for (std::uint32_t s = 0; s < 4; ++s) {
    const RandomAffine& matrix = matrices[s % 2];
    dispatch.buffers.push_back(bound(s, matrix.codes));
    dispatch.buffers.push_back(bound(5 + s, y[s % 2]));
    dispatch.buffers.push_back(bound(12 + s, matrix.scales));
    dispatch.buffers.push_back(bound(16 + s, matrix.biases));
  }
  dispatch.buffers.push_back(bound(4, x));
  dispatch.buffers.push_back(bound_arguments(9, arguments));
  dispatch.buffers.push_back(bound(10, none));
  dispatch.buffers.push_back(bound(11, none));
  dispatch.buffers.push_back(bound_arguments(20, affine));
  runner.run(dispatch);
  return std::max(distance(y[0], matrices[0].times(x)), distance(y[1], matrices[1].times(x)));
}

double check_gated(Runner& runner, TensorType type) {
  Random random(22);
  const std::size_t cols = 384;
  const RandomAffine gate(type, cols, 6, kSkewed[1], random);
  const RandomAffine up(type, cols, 6, kSkewed[2], random);
  // Codes are up to 255 times a scale: small inputs keep gates between shut and open.
  const std::vector<float> x = random.numbers(cols, 0.01f);
  const std::vector<std::uint32_t> none(1);
  std::vector<float> y(6);
  GatedArguments arguments{static_cast<uint>(cols), 6, 0, 0};
  AffineArguments affine = arguments_of(gate, up);
  runner.run({"gated_" + lower_name(type),
              {bound(0, gate.codes), bound(1, up.codes), bound(2, x), bound(3, y), bound_arguments(4, arguments),
               bound(5, none), bound(6, none), bound(7, gate.scales), bound(8, gate.biases), bound(9, up.scales),
               bound(10, up.biases), bound_arguments(11, affine)},
              {2, 1, 1},
              kMatvecThreads});
  std::vector<float> expected = gate.times(x);
  const std::vector<float> other = up.times(x);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = cpu::silu(expected[i]) * other[i];
  return distance(y, expected);
}

double check_tiles(Runner& runner, TensorType type, const std::string& kernel) {
  Random random(23);
  const std::size_t cols = 256;
  const std::size_t inputs = 35;
  const RandomAffine matrix(type, cols, 37, kSkewed[3], random);
  const std::vector<float> x = random.numbers(inputs * cols);
  const std::vector<std::uint32_t> none(1);
  std::vector<float> y(inputs * matrix.rows);
  MatmulArguments arguments{static_cast<uint>(cols), 37, static_cast<uint>(inputs), 0};
  AffineArguments affine = arguments_of(matrix, matrix);
  runner.run({kernel + lower_name(type),
              {bound(0, matrix.codes), bound(1, x), bound(2, y), bound_arguments(3, arguments), bound(4, none),
               bound(5, none), bound(6, matrix.scales), bound(7, matrix.biases), bound_arguments(8, affine)},
              {groups_of(matrix.rows, kMatmulRows), groups_of(inputs, kMatmulInputs), 1},
              kMatmulThreads});
  return distance(y, matrix.times(x));
}

double check_matmul(Runner& runner, TensorType type) { return check_tiles(runner, type, "matmul_"); }

double check_tensor(Runner& runner, TensorType type) { return check_tiles(runner, type, "tensor_matmul_"); }

double check_embed(Runner& runner, TensorType type) {
  Random random(24);
  const RandomAffine table(type, 384, 9, kSkewed[0], random);
  AffineArguments affine = arguments_of(table, table);
  const Bound arrays[] = {bound(0, table.codes), bound(4, table.scales), bound(5, table.biases),
                          bound_arguments(6, affine)};
  return check_embedding(runner, type, table.dequantised(), arrays);
}

double check_scores(Runner& runner, TensorType type) {
  Random random(25);
  const std::size_t cols = 384;
  const RandomAffine matrix(type, cols, 10, kSkewed[2], random);
  const std::vector<float> x = random.numbers(2 * cols);
  std::vector<float> scores(2 * matrix.rows);
  RouterArguments arguments{10, static_cast<uint>(cols), 1, 0};
  AffineArguments affine = arguments_of(matrix, matrix);
  runner.run({"router_scores_" + lower_name(type),
              {bound(0, matrix.codes), bound(1, x), bound(2, scores), bound_arguments(3, arguments),
               bound(4, matrix.scales), bound(5, matrix.biases), bound_arguments(6, affine)},
              {groups_of(matrix.rows, kRouterExperts), 2, 1},
              kRouterThreads});
  return same_bits(scores, matrix.times(x));
}

}  // namespace

void add_affine_checks(std::vector<Check>& checks) {
  add_for_types(checks, Family::kAffine, {"matvec_", "segments of 11 and 5 rows, 2 inputs", kTolerance, check_matvec});
  add_for_types(checks, Family::kAffine, {"gated_", "6 rows", kTolerance, check_gated});
  add_for_types(checks, Family::kAffine, {"matmul_", "37 rows, 35 inputs", kTolerance, check_matmul});
  add_for_types(checks, Family::kAffine, {"embed_", "3 of 9 rows", 0, check_embed});
  add_for_types(checks, Family::kAffine, {"router_scores_", "10 x 384", 0, check_scores});
}

void add_affine_tensor_checks(std::vector<Check>& checks) {
  add_for_types(checks, Family::kAffine, {"tensor_matmul_", "37 rows, 35 inputs", kTolerance, check_tensor});
}

}  // namespace moestream::gpu
