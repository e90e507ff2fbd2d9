// The hyperparameters as the backend uses them, and the widths that follow from them.
//
// Every buffer and every tensor shape is computed from these members alone, so a width is written down once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv_type.h"

namespace moestream::cpu {

// How matrices are multiplied: float32 activations and the same bits everywhere, or activations of 8 bits.
enum class Precision { kExact, kFast };

struct ModelConfig {
  std::size_t layers = 0;
  std::size_t hidden = 0;
  std::size_t vocabulary = 0;
  float rms_epsilon = 0;
  std::vector<std::uint8_t> attention_layers;  // (layers): 1 full attention, 0 Gated DeltaNet

  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t rotary_dims = 0;
  double rope_theta = 0;
  bool gated_attention = false;

  std::size_t delta_key_heads = 0;
  std::size_t delta_value_heads = 0;
  std::size_t delta_head_dim = 0;
  std::size_t conv_kernel = 0;
  bool tiled_value_heads = false;

  std::size_t experts = 0;
  std::size_t experts_per_token = 0;
  std::size_t expert_width = 0;
  std::size_t shared_width = 0;

  std::size_t max_rows = 0;
  std::size_t max_sequences = 0;
  std::size_t context_length = 0;
  std::size_t threads = 0;
  // How often a compute thread looks for work before it sleeps.
  std::size_t spins = 50;
  Precision precision = Precision::kExact;
  KvType kv_type = KvType::kF32;

  // Throws std::invalid_argument naming the member that no buffer could be sized from.
  void validate() const;

  bool is_attention(std::size_t layer) const { return attention_layers[layer] != 0; }
  std::size_t attention_layer_count() const;
  std::size_t delta_layer_count() const { return layers - attention_layer_count(); }

  // A query head's row: the query, then its gate where there is one.
  std::size_t query_head_width() const { return head_dim * (gated_attention ? 2 : 1); }
  std::size_t query_width() const { return heads * query_head_width(); }
  std::size_t attended_width() const { return heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  // Bytes of one position's keys, or values, of one head.
  std::size_t kv_row_bytes() const { return row_bytes(tensor_type_of(kv_type), head_dim); }

  std::size_t delta_key_width() const { return delta_key_heads * delta_head_dim; }
  std::size_t delta_value_width() const { return delta_value_heads * delta_head_dim; }
  std::size_t conv_channels() const { return 2 * delta_key_width() + delta_value_width(); }
  std::size_t conv_history() const { return conv_kernel == 0 ? 0 : conv_kernel - 1; }

  // The longest row of any matrix.
  std::size_t max_cols() const;
};

}  // namespace moestream::cpu
