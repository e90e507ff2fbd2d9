// Norms, SwiGLU and the sum of the experts' outputs.
#include "../../cpu/elementary.h"
#include "../../cpu/norm.h"
#include "checks.h"
#include "material.h"

namespace moestream::gpu {
namespace {

constexpr float kEpsilon = 1e-6f;

double check_norm(Runner& runner, bool add) {
  Random random(31);
  const std::size_t rows = 3;
  const std::size_t count = 416;
  std::vector<float> stream = random.numbers(rows * count);
  const std::vector<float> addend = random.numbers(rows * count);
  const std::vector<float> weight = random.numbers(count);
  std::vector<float> normed(rows * count);
  std::vector<float> expected_stream = stream;
  std::vector<float> expected(rows * count);
  for (std::size_t i = 0; i < stream.size() && add; ++i) expected_stream[i] += addend[i];
  for (std::size_t r = 0; r < rows; ++r) {
    cpu::rms_norm(cpu::vector_kernels(), expected_stream.data() + r * count, weight.data(), kEpsilon, count,
                  expected.data() + r * count);
  }
  NormArguments arguments{static_cast<uint>(count), add ? 1u : 0u, kEpsilon, 0};
  runner.run({"rms_norm",
              {bound(0, stream), bound(1, addend), bound(2, weight), bound(3, normed), bound_arguments(4, arguments)},
              {static_cast<uint>(rows), 1, 1},
              kRowThreads});
  return std::max(same_bits(stream, expected_stream), distance(normed, expected));
}

double check_swiglu(Runner& runner) {
  Random random(32);
  const std::vector<float> gate = random.numbers(300, 60.0f);
  const std::vector<float> up = random.numbers(300);
  std::vector<float> out(300);
  std::vector<float> expected(300);
  for (std::size_t i = 0; i < out.size(); ++i) expected[i] = cpu::silu(gate[i]) * up[i];
  ElementArguments arguments{300, {}};
  runner.run({"swiglu", {bound(0, gate), bound(1, up), bound(2, out), bound_arguments(3, arguments)}, {2, 1, 1},
              kElementThreads});
  return distance(out, expected);
}

double check_combine(Runner& runner, bool shared, bool norm) {
  Random random(33);
  const std::size_t rows = 2;
  const std::size_t choices = 3;
  const std::size_t hidden = 352;
  const std::vector<float> routed = random.numbers(rows * choices * hidden);
  const std::vector<float> weights = random.numbers(rows * choices);
  const std::vector<float> shared_output = random.numbers(rows * hidden);
  const std::vector<float> score = random.numbers(rows, 4.0f);
  const std::vector<float> norm_weight = random.numbers(hidden);
  std::vector<float> stream = random.numbers(rows * hidden);
  std::vector<float> normed(rows * hidden, 7.0f);
  std::vector<float> expected_stream = stream;
  std::vector<float> expected = normed;
  const cpu::VectorKernels& kernels = cpu::vector_kernels();
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<float> sum(hidden);
    for (std::size_t k = 0; k < choices; ++k) {
      const std::size_t slot = r * choices + k;
      kernels.add_scaled(sum.data(), routed.data() + slot * hidden, weights[slot], hidden);
    }
    const float* const of_row = shared_output.data() + r * hidden;
    if (shared) kernels.add_scaled(sum.data(), of_row, cpu::sigmoid(score[r]), hidden);
    float* const into = expected_stream.data() + r * hidden;
    kernels.add_scaled(into, sum.data(), 1.0f, hidden);
    if (norm) cpu::rms_norm(kernels, into, norm_weight.data(), kEpsilon, hidden, expected.data() + r * hidden);
  }
  CombineArguments arguments{static_cast<uint>(hidden), static_cast<uint>(choices), shared ? 1u : 0u, norm ? 1u : 0u,
                             kEpsilon, {}};
  runner.run({"combine",
              {bound(0, routed), bound(1, weights), bound(2, shared_output), bound(3, score), bound(4, stream),
               bound(5, norm_weight), bound(6, normed), bound_arguments(7, arguments)},
              {static_cast<uint>(rows), 1, 1},
              kRowThreads});
  return std::max(distance(stream, expected_stream), distance(normed, expected));
}

}  // namespace

void add_elementary_checks(std::vector<Check>& checks) {
  checks.push_back({"rms_norm", "3 x 416", kTolerance, [](Runner& runner) { return check_norm(runner, false); }});
  checks.push_back({"rms_norm", "3 x 416 and an addend", kTolerance,
                    [](Runner& runner) { return check_norm(runner, true); }});
  checks.push_back({"swiglu", "300", kTolerance, check_swiglu});
  checks.push_back({"combine", "2 x 352 of 3", kTolerance,
                    [](Runner& runner) { return check_combine(runner, false, false); }});
  checks.push_back({"combine", "2 x 352 of 3, shared expert and norm", kTolerance,
                    [](Runner& runner) { return check_combine(runner, true, true); }});
}

std::vector<Check> all_checks() {
  std::vector<Check> checks;
  add_product_checks(checks);
  add_affine_checks(checks);
  add_elementary_checks(checks);
  add_router_checks(checks);
  add_attention_checks(checks);
  add_delta_checks(checks);
  return checks;
}

}  // namespace moestream::gpu
