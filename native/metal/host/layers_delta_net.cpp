// Gated DeltaNet: projections, convolution, one step of every value head's state per row, output projection.
//
// The convolution and the states belong to a sequence, so those are dispatched once per run of rows.
#include <array>

#include "../kernels/arguments.h"
#include "layers.h"

namespace moestream::metal {

void Layers::delta_net(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  const GpuLayer& weights = weights_.layer(layer);
  const RowMap rows = every_row(batch.rows.size());
  const bool joined = weights.beta_alpha.given();
  const std::array<Product, 4> projections{{
      {weights.conv_in, at(memory_.conv)},
      {weights.delta_gate, at(memory_.delta_gate)},
      {joined ? weights.beta_alpha : weights.beta, at(memory_.beta)},
      {weights.alpha, at(memory_.alpha)},
  }};
  products_.multiply(commands, at(memory_.normed), rows, std::span(projections).first(joined ? 3 : 4));
  commands.barrier();
  convolve(commands, layer, batch);
  commands.barrier();
  advance(commands, layer, batch);
  commands.barrier();
  const std::array<Product, 1> output{{{weights.delta_out, at(memory_.mixed)}}};
  products_.multiply(commands, at(memory_.delta_output), rows, output);
}

void Layers::convolve(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  const std::size_t bytes = config_.conv_history() * config_.conv_channels() * sizeof(float);
  const std::size_t groups = (config_.conv_channels() + gpu::kElementThreads - 1) / gpu::kElementThreads;
  for (const cpu::Run& run : batch.runs) {
    const gpu::ConvolveArguments arguments{.channels = static_cast<std::uint32_t>(config_.conv_channels()),
                                           .taps = static_cast<std::uint32_t>(config_.conv_kernel),
                                           .first_row = static_cast<std::uint32_t>(run.first_row),
                                           .rows = static_cast<std::uint32_t>(run.row_count)};
    Dispatch(commands, *pipelines_.convolve)
        .buffer(0, weights_.layer(layer).conv)
        .buffer(1, state_of(sequences_.conv_history(run.sequence, layer), bytes))
        .buffer(2, at(memory_.conv))
        .arguments(3, arguments)
        .run({groups, 1, 1}, gpu::kElementThreads);
  }
}

void Layers::advance(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  const GpuLayer& weights = weights_.layer(layer);
  const std::size_t dim = config_.delta_head_dim;
  const std::size_t bytes = config_.delta_value_heads * dim * dim * sizeof(float);
  const bool joined = weights.beta_alpha.given();
  for (const cpu::Run& run : batch.runs) {
    const gpu::DeltaArguments arguments{.key_heads = static_cast<std::uint32_t>(config_.delta_key_heads),
                                        .value_heads = static_cast<std::uint32_t>(config_.delta_value_heads),
                                        .head_dim = static_cast<std::uint32_t>(dim),
                                        .channels = static_cast<std::uint32_t>(config_.conv_channels()),
                                        .tiled = config_.tiled_value_heads ? 1u : 0u,
                                        .joined = joined ? 1u : 0u,
                                        .first_row = static_cast<std::uint32_t>(run.first_row),
                                        .rows = static_cast<std::uint32_t>(run.row_count),
                                        .epsilon = config_.rms_epsilon,
                                        .unused = 0};
    const bool chunked = run.row_count >= gpu::kDeltaChunk;
    Dispatch(commands, chunked ? *pipelines_.delta_chunk : *pipelines_.delta_step)
        .buffer(0, state_of(sequences_.delta_state(run.sequence, layer, 0), bytes))
        .buffer(1, at(memory_.conv))
        .buffer(2, at(memory_.beta))
        .buffer(3, joined ? at(memory_.beta) : at(memory_.alpha))
        .buffer(4, weights.decay_rate)
        .buffer(5, weights.decay_bias)
        .buffer(6, weights.delta_norm)
        .buffer(7, at(memory_.delta_gate))
        .buffer(8, at(memory_.delta_output))
        .arguments(9, arguments)
        .run({config_.delta_value_heads, 1, 1}, dim * gpu::kDeltaParts);
  }
}

}  // namespace moestream::metal
