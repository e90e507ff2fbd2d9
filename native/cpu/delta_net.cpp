// The four stages of delta_net.h: projections, convolution, heads, output projection.
#include "delta_net.h"

#include <array>
#include <cmath>

#include "elementary.h"
#include "norm.h"

namespace moestream::cpu {
namespace {

// Where beta and alpha of a value head stand in a row: two matrices, or one with both grouped by key head.
struct GateInputs {
  const float* beta;
  const float* alpha;
};

GateInputs gate_inputs(const Step& step, const LayerWeights& weights, std::size_t row, std::size_t value_head) {
  const ModelConfig& config = step.config;
  const float* const base = step.scratch.at(step.plan().beta_alpha);
  const std::size_t heads = config.delta_value_heads;
  if (!weights.beta_alpha.given()) {
    const float* const alpha = base + config.max_rows * heads;
    return {base + row * heads + value_head, alpha + row * heads + value_head};
  }
  const std::size_t group = heads / config.delta_key_heads;
  const float* const beta = base + row * 2 * heads + value_head / group * 2 * group + value_head % group;
  return {beta, beta + group};
}

void project(const Step& step, const LayerWeights& weights) {
  const ScratchLayout& plan = step.plan();
  float* const beta = step.scratch.at(plan.beta_alpha);
  float* const alpha = beta + step.config.max_rows * step.config.delta_value_heads;
  const bool joined = weights.beta_alpha.given();
  const std::array<Product, 4> products{{
      {weights.conv_in, step.scratch.at(plan.conv)},
      {weights.delta_gate, step.scratch.at(plan.delta_gate)},
      {joined ? weights.beta_alpha : weights.beta, beta},
      {weights.alpha, alpha},
  }};
  step.multiplier.multiply(step.input(plan.normed, step.config.hidden), step.every_row(),
                           std::span(products).first(joined ? 3 : 4));
}

// y[c] = silu(sum over taps of weight[tap][c] * input[now - last + tap][c]), in place.
void convolve(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  const std::size_t channels = config.conv_channels();
  float* const rows = step.scratch.at(step.plan().conv);
  const std::size_t operations = step.row_count() * (4 * config.conv_kernel + 20);
  step.pool.run(channels, grain_of(operations), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (const Run& run : step.batch.runs) {
      float* const history = step.sequences.conv_history(run.sequence, layer);
      for (std::size_t r = run.first_row; r < run.first_row + run.row_count; ++r) {
        step.kernels.convolve(ConvolutionStep{
            .taps = weights.conv.data(),
            .history = history,
            .row = rows + r * channels,
            .past = config.conv_history(),
            .channels = channels,
            .begin = begin,
            .end = end,
        });
      }
    }
  });
}

// One row of one value head: norms, gates, the delta rule, gated output norm.
void advance_head(const Step& step, const LayerWeights& weights, std::size_t row, std::size_t value_head, float* state,
                  float* vectors) {
  const ModelConfig& config = step.config;
  const std::size_t dim = config.delta_head_dim;
  const std::size_t key_head = config.tiled_value_heads
                                   ? value_head % config.delta_key_heads
                                   : value_head / (config.delta_value_heads / config.delta_key_heads);
  const float* const conv = step.scratch.at(step.plan().conv) + row * config.conv_channels();
  float* const query = vectors;
  float* const key = vectors + dim;
  l2_norm(step.kernels, conv + key_head * dim, 1.0f / std::sqrt(static_cast<float>(dim)), dim, query);
  l2_norm(step.kernels, conv + config.delta_key_width() + key_head * dim, 1.0f, dim, key);

  const GateInputs gates = gate_inputs(step, weights, row, value_head);
  const float log_decay =
      weights.decay_rate.data()[value_head] * softplus(*gates.alpha + weights.decay_bias.data()[value_head]);
  const std::size_t at = row * config.delta_value_width() + value_head * dim;
  float* const out = step.scratch.at(step.plan().delta_output) + at;
  step.kernels.delta_step(DeltaStep{
      .state = state,
      .query = query,
      .key = key,
      .value = conv + 2 * config.delta_key_width() + value_head * dim,
      .update = vectors + 2 * dim,
      .output = out,
      .decay = exp_float(log_decay),
      .beta = sigmoid(*gates.beta),
      .head_dim = dim,
  });
  rms_norm(step.kernels, out, weights.delta_norm.data(), config.rms_epsilon, dim, out);
  step.kernels.multiply_silu(out, step.scratch.at(step.plan().delta_gate) + at, dim);
}

void advance_heads(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  const std::size_t heads = config.delta_value_heads;
  const std::size_t dim = config.delta_head_dim;
  const std::size_t rows_per_run = step.row_count() / step.batch.runs.size();
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t thread) {
    float* const vectors = step.scratch.at(step.plan().delta_vectors) + thread * 3 * dim;
    for (std::size_t unit = begin; unit < end; ++unit) {
      const Run& run = step.batch.runs[unit / heads];
      const std::size_t head = unit % heads;
      float* const state = step.sequences.delta_state(run.sequence, layer, head);
      for (std::size_t r = run.first_row; r < run.first_row + run.row_count; ++r) {
        advance_head(step, weights, r, head, state, vectors);
      }
    }
  };
  step.pool.run(step.batch.runs.size() * heads, grain_of(rows_per_run * dim * dim), work);
}

}  // namespace

void run_delta_net(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  project(step, weights);
  convolve(step, weights, layer);
  advance_heads(step, weights, layer);
  const std::array<Product, 1> output{{{weights.delta_out, step.scratch.at(step.plan().mixed)}}};
  step.multiplier.multiply(step.input(step.plan().delta_output, config.delta_value_width()), step.every_row(), output);
}

}  // namespace moestream::cpu
