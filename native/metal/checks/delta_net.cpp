// The convolution and the delta rule, row by row and in chunks.
#include <cmath>

#include "../../cpu/elementary.h"
#include "../../cpu/norm.h"
#include "checks.h"
#include "material.h"

namespace moestream::gpu {
namespace {

double check_convolve(Runner& runner, std::size_t rows) {
  Random random(61);
  const std::size_t channels = 300;
  const std::size_t taps = 4;
  const std::size_t first = 1;
  const std::vector<float> weights = random.numbers(taps * channels);
  std::vector<float> history = random.numbers((taps - 1) * channels);
  std::vector<float> values = random.numbers((first + rows) * channels);
  std::vector<float> expected_history = history;
  std::vector<float> expected = values;
  for (std::size_t r = first; r < first + rows; ++r) {
    cpu::vector_kernels().convolve({weights.data(), expected_history.data(), expected.data() + r * channels, taps - 1,
                                    channels, 0, channels});
  }
  ConvolveArguments arguments{static_cast<uint>(channels), static_cast<uint>(taps), static_cast<uint>(first),
                              static_cast<uint>(rows)};
  runner.run({"convolve",
              {bound(0, weights), bound(1, history), bound(2, values), bound_arguments(3, arguments)},
              {groups_of(channels, kElementThreads), 1, 1},
              kElementThreads});
  return same_bits(history, expected_history) + distance(values, expected);
}

struct Shape {
  const char* kernel;
  std::size_t key_heads;
  std::size_t value_heads;
  std::size_t dim;
  bool tiled;
  bool joined;
  std::size_t rows;
};

// A run of rows after one row of another sequence.
struct Delta {
  explicit Delta(const Shape& of_shape) : shape(of_shape) {
    Random random(62);
    step_rows = 1 + shape.rows;
    width = shape.value_heads * shape.dim;
    channels = 2 * shape.key_heads * shape.dim + width;
    state = random.numbers(width * shape.dim);
    conv = random.numbers(step_rows * channels);
    beta = random.numbers(step_rows * shape.value_heads * (shape.joined ? 2 : 1), 3.0f);
    alpha = random.numbers(step_rows * shape.value_heads, 3.0f);
    decay_rate = random.numbers(shape.value_heads);
    for (float& each : decay_rate) each = -std::abs(each);
    decay_bias = random.numbers(shape.value_heads);
    norm = random.numbers(shape.dim);
    z = random.numbers(step_rows * width, 4.0f);
    out.assign(step_rows * width, 5.0f);
    arguments = {static_cast<uint>(shape.key_heads), static_cast<uint>(shape.value_heads),
                 static_cast<uint>(shape.dim),       static_cast<uint>(channels),
                 shape.tiled ? 1u : 0u,              shape.joined ? 1u : 0u,
                 1u,                                 static_cast<uint>(shape.rows),
                 1e-6f,                              0};
  }

  // Beta (0) or alpha (1) of a row's value head.
  float gate(std::size_t row, std::size_t head, std::size_t which) const {
    if (!shape.joined) return (which == 0 ? beta : alpha)[row * shape.value_heads + head];
    const std::size_t group = shape.value_heads / shape.key_heads;
    return beta[row * 2 * shape.value_heads + head / group * 2 * group + which * group + head % group];
  }

  Shape shape;
  std::size_t step_rows, width, channels;
  std::vector<float> state, conv, beta, alpha, decay_rate, decay_bias, norm, z, out;
  DeltaArguments arguments{};
};

void advance(Delta& step, std::size_t row, std::size_t head) {
  const Shape& shape = step.shape;
  const std::size_t dim = shape.dim;
  const cpu::VectorKernels& kernels = cpu::vector_kernels();
  const std::size_t key_head =
      shape.tiled ? head % shape.key_heads : head / (shape.value_heads / shape.key_heads);
  const float* const conv = step.conv.data() + row * step.channels;
  std::vector<float> query(dim), key(dim), update(dim);
  cpu::l2_norm(kernels, conv + key_head * dim, 1.0f / std::sqrt(static_cast<float>(dim)), dim, query.data());
  cpu::l2_norm(kernels, conv + (shape.key_heads + key_head) * dim, 1.0f, dim, key.data());
  float* const out = step.out.data() + row * step.width + head * dim;
  kernels.delta_step({
      .state = step.state.data() + head * dim * dim,
      .query = query.data(),
      .key = key.data(),
      .value = conv + 2 * shape.key_heads * dim + head * dim,
      .update = update.data(),
      .output = out,
      .decay = cpu::exp_float(step.decay_rate[head] * cpu::softplus(step.gate(row, head, 1) + step.decay_bias[head])),
      .beta = cpu::sigmoid(step.gate(row, head, 0)),
      .head_dim = dim,
  });
  cpu::rms_norm(kernels, out, step.norm.data(), step.arguments.epsilon, dim, out);
  kernels.multiply_silu(out, step.z.data() + row * step.width + head * dim, dim);
}

double check_delta(Runner& runner, const Shape& shape) {
  Delta step(shape);
  Delta expected(shape);
  for (std::size_t head = 0; head < shape.value_heads; ++head) {
    for (std::size_t row = 1; row < step.step_rows; ++row) advance(expected, row, head);
  }
  runner.run({shape.kernel,
              {bound(0, step.state), bound(1, step.conv), bound(2, step.beta),
               shape.joined ? bound(3, step.beta) : bound(3, step.alpha), bound(4, step.decay_rate),
               bound(5, step.decay_bias), bound(6, step.norm), bound(7, step.z), bound(8, step.out),
               bound_arguments(9, step.arguments)},
              {static_cast<uint>(shape.value_heads), 1, 1},
              static_cast<uint>(shape.dim) * kDeltaParts});
  return std::max(distance(step.state, expected.state), distance(step.out, expected.out));
}

}  // namespace

void add_delta_checks(std::vector<Check>& checks) {
  for (const std::size_t rows : {1, 2, 9}) {
    checks.push_back({"convolve", std::to_string(rows) + " rows of 300 channels", kTolerance,
                      [rows](Runner& runner) { return check_convolve(runner, rows); }});
  }
  for (const Shape& shape : {Shape{"delta_step", 2, 4, 128, true, false, 1}, Shape{"delta_step", 2, 4, 64, false, true, 3},
                             Shape{"delta_step", 1, 1, 32, true, false, 7},
                             Shape{"delta_chunk", 1, 2, 128, true, false, 37},
                             Shape{"delta_chunk", 2, 4, 64, false, true, 16},
                             Shape{"delta_chunk", 1, 1, 32, true, false, 5}, Shape{"delta_step", 2, 4, 16, false, false, 3},
                             Shape{"delta_chunk", 2, 4, 16, false, false, 18}}) {
    checks.push_back({shape.kernel, std::to_string(shape.rows) + " rows, " + std::to_string(shape.value_heads) +
                                        " heads of " + std::to_string(shape.dim),
                      kTolerance, [shape](Runner& runner) { return check_delta(runner, shape); }});
  }
}

}  // namespace moestream::gpu
