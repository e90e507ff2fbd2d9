// Full attention: projections, norms and rotation with the append to the cache, heads in splits, output projection.
#include <algorithm>
#include <array>
#include <cmath>

#include "../kernels/arguments.h"
#include "layers.h"

namespace moestream::metal {

void Layers::attention(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  const GpuLayer& weights = weights_.layer(layer);
  const RowMap rows = every_row(batch.rows.size());
  const std::array<Product, 3> projections{{
      {weights.query, at(memory_.query)},
      {weights.key, at(memory_.key)},
      {weights.value, at(memory_.value)},
  }};
  products_.multiply(commands, at(memory_.normed), rows, projections);
  commands.barrier();
  attend(commands, layer, batch);
  commands.barrier();
  const std::array<Product, 1> output{{{weights.attention_out, at(memory_.mixed)}}};
  products_.multiply(commands, at(memory_.attended), rows, output);
}

void Layers::attend(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  const GpuLayer& weights = weights_.layer(layer);
  const std::size_t head_bytes = config_.context_length * config_.kv_row_bytes();
  const std::size_t sequence_bytes = config_.attention_layer_count() * 2 * config_.kv_heads * head_bytes;
  // To the end of the last sequence's part of this layer.
  const std::size_t reach = (config_.max_sequences - 1) * sequence_bytes + config_.kv_heads * head_bytes;
  const Place keys = state_of(sequences_.keys(0, layer, 0), reach);
  const Place values = state_of(sequences_.values(0, layer, 0), reach);
  gpu::AttentionArguments arguments{.sequence_stride = sequence_bytes,
                                    .head_stride = head_bytes,
                                    .row_bytes = static_cast<std::uint32_t>(config_.kv_row_bytes()),
                                    .heads = static_cast<std::uint32_t>(config_.heads),
                                    .kv_heads = static_cast<std::uint32_t>(config_.kv_heads),
                                    .head_dim = static_cast<std::uint32_t>(config_.head_dim),
                                    .query_head_width = static_cast<std::uint32_t>(config_.query_head_width()),
                                    .rotary_dims = static_cast<std::uint32_t>(config_.rotary_dims),
                                    .gated = config_.gated_attention ? 1u : 0u,
                                    .first_row = 0,
                                    .epsilon = config_.rms_epsilon,
                                    .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
  Dispatch(commands, *pipelines_.attention_prepare)
      .buffer(0, at(memory_.query))
      .buffer(1, at(memory_.key))
      .buffer(2, at(memory_.value))
      .buffer(3, weights.query_norm)
      .buffer(4, weights.key_norm)
      .buffer(5, at(memory_.rotations))
      .buffer(6, at(memory_.rows))
      .buffer(7, keys)
      .buffer(8, values)
      .arguments(9, arguments)
      .run({config_.heads + config_.kv_heads, batch.rows.size(), 1}, gpu::kSimdWidth);

  const std::size_t most = memory_.sizes.attention_rows;
  for (std::size_t first = 0; first < batch.rows.size(); first += most) {
    const std::size_t count = std::min(most, batch.rows.size() - first);
    std::uint32_t splits = 1;
    for (std::size_t r = first; r < first + count; ++r) {
      const auto positions = static_cast<std::uint32_t>(batch.rows[r].position + 1);
      splits = std::max(splits, gpu::attention_split_count(positions));
    }
    arguments.first_row = static_cast<std::uint32_t>(first);
    commands.barrier();
    Dispatch(commands, *pipelines_.attention)
        .buffer(0, at(memory_.query))
        .buffer(1, keys)
        .buffer(2, values)
        .buffer(3, at(memory_.rows))
        .buffer(4, at(memory_.partial))
        .arguments(5, arguments)
        .run({config_.heads, count, splits}, gpu::kAttentionThreads);
    commands.barrier();
    Dispatch(commands, *pipelines_.attention_merge)
        .buffer(0, at(memory_.partial))
        .buffer(1, at(memory_.query))
        .buffer(2, at(memory_.rows))
        .buffer(3, at(memory_.attended))
        .arguments(4, arguments)
        .run({config_.heads, count, 1}, gpu::kSimdWidth);
  }
}

}  // namespace moestream::metal
