// The order and sizes of the buffers named in scratch.h.
#include "scratch.h"

#include "matmul.h"

namespace moestream::cpu {

ScratchLayout::ScratchLayout(const ModelConfig& config) {
  const std::size_t rows = config.max_rows;
  stream = layout.take<float>({rows, config.hidden});
  normed = layout.take<float>({rows, config.hidden});
  mixed = layout.take<float>({rows, config.hidden});
  all_rows = layout.take<std::uint32_t>({rows});
  if (config.precision == Precision::kExact) {
    weight_rows = layout.take<float>({Multiplier::buffer_floats(config.threads, config.max_cols())});
  } else {
    prepared = layout.take<std::byte>({FastMultiplier::buffer_bytes(rows, config.max_cols())});
  }

  if (config.attention_layer_count() > 0) {
    query = layout.take<float>({rows, config.query_width()});
    key = layout.take<float>({rows, config.kv_width()});
    value = layout.take<float>({rows, config.kv_width()});
    attended = layout.take<float>({rows, config.attended_width()});
    scores = layout.take<float>({config.threads, config.context_length});
    rotations = layout.take<float>({rows, config.rotary_dims});
  }
  if (config.delta_layer_count() > 0) {
    conv = layout.take<float>({rows, config.conv_channels()});
    delta_gate = layout.take<float>({rows, config.delta_value_width()});
    beta_alpha = layout.take<float>({rows, 2, config.delta_value_heads});
    delta_output = layout.take<float>({rows, config.delta_value_width()});
    delta_vectors = layout.take<float>({config.threads, 3, config.delta_head_dim});
  }

  router = layout.take<float>({rows, config.experts});
  route_ids = layout.take<std::int32_t>({rows, config.experts_per_token});
  route_weights = layout.take<float>({rows, config.experts_per_token});
  route_done = layout.take<std::uint8_t>({rows, config.experts_per_token});
  chosen_rows = layout.take<std::uint32_t>({rows});
  chosen_slots = layout.take<std::uint32_t>({rows});
  expert_inner = layout.take<float>({rows, config.expert_width});
  routed = layout.take<float>({rows, config.experts_per_token, config.hidden});
  if (config.shared_width > 0) {
    shared_inner = layout.take<float>({rows, config.shared_width});
    shared_output = layout.take<float>({rows, config.hidden});
    shared_gate = layout.take<float>({rows});
  }
}

}  // namespace moestream::cpu
