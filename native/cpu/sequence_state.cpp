// Addresses inside the two mappings of sequence_state.h. A head's keys are contiguous over positions, which is the
// order in which a query walks them.
#include "sequence_state.h"

#include <algorithm>
#include <cstring>

namespace moestream::cpu {
namespace {

std::size_t head_bytes(const ModelConfig& config) {
  return product({config.context_length, config.kv_row_bytes()});
}

std::size_t history_floats(const ModelConfig& config) {
  return product({config.conv_history(), config.conv_channels()});
}

std::size_t state_floats(const ModelConfig& config) {
  return product({config.delta_value_heads, config.delta_head_dim, config.delta_head_dim});
}

std::size_t delta_layer_floats(const ModelConfig& config) { return history_floats(config) + state_floats(config); }

}  // namespace

std::size_t SequenceStore::kv_bytes(const ModelConfig& config) {
  return product({config.max_sequences, config.attention_layer_count(), 2, config.kv_heads, head_bytes(config)});
}

std::size_t SequenceStore::state_bytes(const ModelConfig& config) {
  return product({config.max_sequences, config.delta_layer_count(), delta_layer_floats(config), sizeof(float)});
}

SequenceStore::SequenceStore(const ModelConfig& config)
    : config_(config), kv_(kv_bytes(config)), state_(state_bytes(config)), sequences_(config.max_sequences) {
  std::size_t seen[2] = {0, 0};
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    ordinal_.push_back(seen[config.is_attention(layer) ? 1 : 0]++);
  }
}

std::uint8_t* SequenceStore::kv_head(std::size_t sequence, std::size_t layer, std::size_t which,
                                     std::size_t kv_head) const {
  const std::size_t bytes = head_bytes(config_);
  const std::size_t layer_index = sequence * config_.attention_layer_count() + ordinal_[layer];
  const std::size_t head_index = (layer_index * 2 + which) * config_.kv_heads + kv_head;
  return kv_.at(Slice<std::uint8_t>{head_index * bytes, bytes}).data();
}

std::uint8_t* SequenceStore::keys(std::size_t sequence, std::size_t layer, std::size_t head) const {
  return kv_head(sequence, layer, 0, head);
}

std::uint8_t* SequenceStore::values(std::size_t sequence, std::size_t layer, std::size_t head) const {
  return kv_head(sequence, layer, 1, head);
}

float* SequenceStore::delta_layer(std::size_t sequence, std::size_t layer) const {
  const std::size_t floats = delta_layer_floats(config_);
  const std::size_t index = sequence * config_.delta_layer_count() + ordinal_[layer];
  return state_.at(Slice<float>{index * floats * sizeof(float), floats}).data();
}

float* SequenceStore::conv_history(std::size_t sequence, std::size_t layer) const {
  return delta_layer(sequence, layer);
}

float* SequenceStore::delta_state(std::size_t sequence, std::size_t layer, std::size_t value_head) const {
  return delta_layer(sequence, layer) + history_floats(config_) +
         value_head * config_.delta_head_dim * config_.delta_head_dim;
}

void SequenceStore::extend(std::size_t sequence, std::size_t tokens) {
  sequences_[sequence].token_count += tokens;
  sequences_[sequence].settled = false;
}

// Keys and values need no clearing: nothing beyond the token count is read. The state of a sequence that took no token
// is still untouched memory, and stays so.
void SequenceStore::reset(std::size_t sequence) {
  if (sequences_[sequence].token_count == 0) return;
  sequences_[sequence] = Sequence{};
  const std::size_t floats = config_.delta_layer_count() * delta_layer_floats(config_);
  const std::span<float> state = state_.at(Slice<float>{sequence * floats * sizeof(float), floats});
  std::ranges::fill(state, 0.0f);
}

std::vector<std::span<std::byte>> SequenceStore::parts(std::size_t sequence, std::size_t positions) const {
  std::vector<std::span<std::byte>> found;
  if (positions == 0) return found;
  for (std::size_t layer = 0; layer < config_.layers; ++layer) {
    if (!config_.is_attention(layer)) {
      found.push_back(std::as_writable_bytes(std::span(delta_layer(sequence, layer), delta_layer_floats(config_))));
      continue;
    }
    for (std::size_t head = 0; head < config_.kv_heads; ++head) {
      const std::size_t bytes = positions * config_.kv_row_bytes();
      found.push_back(std::as_writable_bytes(std::span(keys(sequence, layer, head), bytes)));
      found.push_back(std::as_writable_bytes(std::span(values(sequence, layer, head), bytes)));
    }
  }
  return found;
}

void SequenceStore::copy(std::size_t from, std::size_t to) {
  if (from == to) return;
  const std::size_t positions = sequences_[from].token_count;
  reset(to);
  const auto source = parts(from, positions);
  const auto target = parts(to, positions);
  for (std::size_t i = 0; i < source.size(); ++i) std::memcpy(target[i].data(), source[i].data(), source[i].size());
  sequences_[to] = sequences_[from];
}

}  // namespace moestream::cpu
