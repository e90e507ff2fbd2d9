// The relations between hyperparameters that the formulas divide by or index with.
#include "model_config.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace moestream::cpu {
namespace {

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(std::string("backend configuration: ") + rule);
}

void validate_attention(const ModelConfig& config) {
  require(config.heads > 0 && config.kv_heads > 0 && config.head_dim > 0, "attention layers need heads and headDim");
  require(config.heads % config.kv_heads == 0, "heads must be a multiple of kvHeads");
  require(config.rotary_dims % 2 == 0 && config.rotary_dims <= config.head_dim,
          "rotaryDims must be even and at most headDim");
  require(config.rope_theta > 0, "ropeTheta must be positive");
  require(config.head_dim % traits_of(tensor_type_of(config.kv_type)).block_values == 0,
          "headDim must be whole blocks of kvType");
}

void validate_delta(const ModelConfig& config) {
  require(config.delta_key_heads > 0 && config.delta_value_heads > 0 && config.delta_head_dim > 0,
          "DeltaNet layers need deltaKeyHeads, deltaValueHeads and deltaHeadDim");
  require(config.delta_value_heads % config.delta_key_heads == 0,
          "deltaValueHeads must be a multiple of deltaKeyHeads");
  require(config.conv_kernel >= 1, "DeltaNet layers need convKernel");
}

}  // namespace

void ModelConfig::validate() const {
  require(layers > 0, "layers must be positive");
  require(hidden > 0, "hidden must be positive");
  require(vocabulary > 0, "vocabulary must be positive");
  require(rms_epsilon >= 0, "rmsEpsilon must not be negative");
  require(attention_layers.size() == layers, "attentionLayers must have one entry per layer");
  if (attention_layer_count() > 0) validate_attention(*this);
  if (delta_layer_count() > 0) validate_delta(*this);
  require(experts > 0 && expert_width > 0, "experts and expertWidth must be positive");
  require(experts_per_token > 0 && experts_per_token <= experts, "expertsPerToken must be in 1..experts");
  require(max_rows > 0, "maxRows must be positive");
  require(max_sequences > 0, "maxSequences must be positive");
  require(context_length > 0, "contextLength must be positive");
  require(threads >= 1 && threads <= 1024, "threads must be in 1..1024");
}

std::size_t ModelConfig::attention_layer_count() const {
  return static_cast<std::size_t>(std::ranges::count_if(attention_layers, [](std::uint8_t each) { return each != 0; }));
}

std::size_t ModelConfig::max_cols() const {
  return std::max({hidden, attended_width(), delta_value_width(), expert_width, shared_width});
}

}  // namespace moestream::cpu
