// The router must choose as the CPU chooses: bits, not distances.
#include "../../cpu/elementary.h"
#include "../../cpu/vector_kernels.h"
#include "checks.h"
#include "material.h"

namespace moestream::gpu {
namespace {

double check_scores(Runner& runner, cpu::TensorType type) {
  Random random(41);
  const std::size_t cols = 352;
  const std::size_t rows = 2;
  const RandomMatrix matrix(type, cols, 10, random);
  const std::vector<float> x = random.numbers(rows * cols);
  std::vector<float> scores(rows * matrix.rows);
  std::vector<float> expected(scores.size());
  const std::vector<float> weights = matrix.dequantised();
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] = cpu::vector_kernels().dot(weights.data() + i % matrix.rows * cols,
                                            x.data() + i / matrix.rows * cols, cols);
  }
  RouterArguments arguments{10, static_cast<uint>(cols), 1, 0};
  runner.run({"router_scores_" + lower_name(type),
              {bound(0, matrix.bytes), bound(1, x), bound(2, scores), bound_arguments(3, arguments)},
              {groups_of(matrix.rows, kRouterExperts), static_cast<uint>(rows), 1},
              kRouterThreads});
  return same_bits(scores, expected);
}

// As native/cpu/router.cpp does it.
void choose(std::span<float> scores, std::size_t choices, std::int32_t* ids, float* weights) {
  float maximum = scores[0];
  for (const float each : scores) maximum = each > maximum ? each : maximum;
  float sum = 0;
  for (float& each : scores) {
    each = cpu::exp_float(each - maximum);
    sum += each;
  }
  for (float& each : scores) each /= sum;
  float chosen = 0;
  for (std::size_t k = 0; k < choices; ++k) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < scores.size(); ++e) best = scores[e] > scores[best] ? e : best;
    ids[k] = static_cast<std::int32_t>(best);
    weights[k] = scores[best];
    chosen += scores[best];
    scores[best] = -1.0f;
  }
  for (std::size_t k = 0; k < choices; ++k) weights[k] /= chosen;
}

// `size` 0 makes all scores equal: of equal ones the first are chosen.
double check_choice(Runner& runner, std::size_t experts, std::size_t choices, float size) {
  Random random(42);
  const std::size_t rows = 3;
  std::vector<float> scores = random.numbers(rows * experts, size);
  // Scores that differ in the last bit may or may not give one probability.
  for (std::size_t e = 4; e + 1 < experts; e += 7) {
    scores[e] = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, scores[e + 1]) + 1u);
  }
  std::vector<std::int32_t> ids(rows * choices);
  std::vector<float> weights(rows * choices);
  std::vector<std::int32_t> expected_ids(rows * choices);
  std::vector<float> expected_weights(rows * choices);
  RouterArguments arguments{static_cast<uint>(experts), 0, static_cast<uint>(choices), 0};
  runner.run({"router_choose",
              {bound(0, scores), bound(1, ids), bound(2, weights), bound_arguments(3, arguments)},
              {static_cast<uint>(rows), 1, 1},
              kSimdWidth});
  for (std::size_t r = 0; r < rows; ++r) {
    choose(std::span(scores).subspan(r * experts, experts), choices, expected_ids.data() + r * choices,
           expected_weights.data() + r * choices);
  }
  return same_bits(ids, expected_ids) + same_bits(weights, expected_weights);
}

}  // namespace

void add_router_checks(std::vector<Check>& checks) {
  for (const cpu::TensorType type : {cpu::TensorType::F32, cpu::TensorType::F16, cpu::TensorType::BF16}) {
    checks.push_back({"router_scores_" + lower_name(type), "10 x 352, 2 inputs", 0,
                      [type](Runner& runner) { return check_scores(runner, type); }});
  }
  struct Shape {
    std::size_t experts;
    std::size_t choices;
    float size;
    const char* name;
  };
  for (const Shape& shape : {Shape{512, 10, 8.0f, "10 of 512"}, Shape{40, 6, 90.0f, "6 of 40, far apart"},
                             Shape{64, 8, 0.0f, "8 of 64, all equal"}, Shape{16, 16, 1.0f, "16 of 16"}}) {
    checks.push_back({"router_choose", shape.name, 0, [shape](Runner& runner) {
                        return check_choice(runner, shape.experts, shape.choices, shape.size);
                      }});
  }
}

}  // namespace moestream::gpu
