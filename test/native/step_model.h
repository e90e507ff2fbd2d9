// A small random model driven step by step without Node, through any backend: what the sanitizers' programs run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <vector>

#include "../../native/cpu/batch.h"
#include "../../native/cpu/expert_places.h"
#include "../../native/cpu/model_config.h"
#include "random_blocks.h"

namespace moestream::test {

// The types of the routed experts and where in the slab they begin.
struct StepExperts {
  cpu::TensorType gate;
  cpu::TensorType down;
  std::size_t first_byte;
};

inline cpu::ModelConfig step_config(cpu::Precision precision, cpu::KvType kv_type, std::size_t threads) {
  cpu::ModelConfig config;
  config.layers = 3;
  config.hidden = 256;
  config.vocabulary = 67;
  config.rms_epsilon = 1e-6f;
  config.attention_layers = {0, 1, 0};
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.rotary_dims = 8;
  config.rope_theta = 1e4;
  config.gated_attention = true;
  config.delta_key_heads = 2;
  config.delta_value_heads = 4;
  config.delta_head_dim = 16;
  config.conv_kernel = 4;
  config.experts = 8;
  config.experts_per_token = 3;
  config.expert_width = 64;
  config.shared_width = 32;
  config.max_rows = 16;
  config.max_sequences = 3;
  config.context_length = 48;
  config.threads = threads;
  config.precision = precision;
  config.kv_type = kv_type;
  return config;
}

template <class Backend>
class StepModel {
 public:
  StepModel(const cpu::ModelConfig& config, const StepExperts& experts)
      : config_(config), experts_(experts), backend(config) {
    add_globals();
    for (std::size_t layer = 0; layer < config.layers; ++layer) add_layer(static_cast<std::int64_t>(layer));
    backend.seal();
    add_experts();
    rows_.resize(config.max_rows * 4);
    ids_.resize(config.max_rows * config.experts_per_token);
    weights_.resize(ids_.size());
    logits_.resize(config.max_rows * config.vocabulary);
    backend.bind_rows(rows_);
    backend.bind_routes(ids_, weights_);
    backend.bind_slab({slab_});
    backend.bind_logits(logits_);
  }

  // Begins a step of these rows.
  void begin(const std::vector<cpu::Row>& rows) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::int32_t words[] = {static_cast<std::int32_t>(rows[r].token), static_cast<std::int32_t>(rows[r].position),
                                    static_cast<std::int32_t>(rows[r].sequence), 0};
      std::copy_n(words, 4, rows_.data() + 4 * r);
    }
    backend.begin(rows.size());
  }

  // The experts that the rows of this step chose in the layer under way, each once.
  std::set<std::size_t> chosen(std::size_t row_count) const {
    const auto end = ids_.begin() + static_cast<std::ptrdiff_t>(row_count * config_.experts_per_token);
    return {ids_.begin(), end};
  }

  void expert(std::size_t layer, std::size_t expert) {
    const std::size_t at = experts_.first_byte + (layer * config_.experts + expert) * expert_bytes();
    const cpu::ExpertPlaces places{place(at, experts_.gate, config_.expert_width, config_.hidden),
                                   place(at + gate_bytes(), experts_.gate, config_.expert_width, config_.hidden),
                                   place(at + 2 * gate_bytes(), experts_.down, config_.hidden, config_.expert_width)};
    backend.expert(layer, expert, 0, places);
  }

  // One step; row by row its logits.
  std::vector<float> step(const std::vector<cpu::Row>& rows) {
    begin(rows);
    for (std::size_t layer = 0; layer < config_.layers; ++layer) {
      backend.mix(layer);
      backend.shared(layer);
      for (const std::size_t each : chosen(rows.size())) expert(layer, each);
      backend.combine(layer);
    }
    return logits(rows.size());
  }

  std::vector<float> logits(std::size_t row_count) {
    backend.logits(0, row_count, 0);
    return {logits_.begin(), logits_.begin() + static_cast<std::ptrdiff_t>(row_count * config_.vocabulary)};
  }

  // Tokens [from, to) of the text of a sequence, in steps of `chunk` rows.
  std::vector<float> feed(std::size_t sequence, std::size_t from, std::size_t to, std::size_t chunk) {
    std::vector<float> all;
    for (std::size_t at = from; at < to; at += chunk) {
      std::vector<cpu::Row> rows;
      for (std::size_t p = at; p < std::min(to, at + chunk); ++p) rows.push_back({token_at(p), p, sequence});
      const std::vector<float> some = step(rows);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  std::size_t token_at(std::size_t position) const { return (position * 29 + 11) % config_.vocabulary; }

 private:
  std::size_t gate_bytes() const { return cpu::joined_bytes(experts_.gate, config_.hidden, config_.expert_width); }
  std::size_t down_bytes() const { return cpu::joined_bytes(experts_.down, config_.expert_width, config_.hidden); }
  std::size_t expert_bytes() const { return 2 * gate_bytes() + down_bytes(); }

  static cpu::MatrixPlace place(std::size_t at, cpu::TensorType type, std::size_t rows, std::size_t cols) {
    const std::size_t scales = at + rows * cpu::row_bytes(type, cols);
    return {at, scales, scales + rows * cpu::side_row_bytes(type, cols), cpu::is_affine(type)};
  }

  void add(const char* name, std::int64_t layer, std::size_t cols, std::size_t rows, float middle, float reach) {
    // The vectors keep their bytes when the list of them grows.
    std::vector<std::uint8_t>& bytes = tensors_.emplace_back(cols * rows * sizeof(float));
    for (std::size_t i = 0; i < cols * rows; ++i) {
      const float value = middle + reach * next_float(state_);
      std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
    backend.unsealed_weights().set(name, layer, static_cast<std::uint32_t>(cpu::TensorType::F32), cols, rows,
                                   {bytes, {}, {}});
  }

  void matrix(const char* name, std::int64_t layer, std::size_t cols, std::size_t rows) {
    add(name, layer, cols, rows, 0.0f, 2.0f / std::sqrt(static_cast<float>(cols)));
  }

  void norm(const char* name, std::int64_t layer, std::size_t cols) { add(name, layer, cols, 1, 1.0f, 0.25f); }

  void add_globals() {
    matrix("token_embd.weight", -1, config_.hidden, config_.vocabulary);
    matrix("output.weight", -1, config_.hidden, config_.vocabulary);
    norm("output_norm.weight", -1, config_.hidden);
  }

  void add_layer(std::int64_t layer) {
    const std::size_t hidden = config_.hidden;
    norm("attn_norm.weight", layer, hidden);
    norm("post_attention_norm.weight", layer, hidden);
    if (config_.is_attention(static_cast<std::size_t>(layer))) {
      matrix("attn_q.weight", layer, hidden, config_.query_width());
      matrix("attn_k.weight", layer, hidden, config_.kv_width());
      matrix("attn_v.weight", layer, hidden, config_.kv_width());
      matrix("attn_output.weight", layer, config_.attended_width(), hidden);
      norm("attn_q_norm.weight", layer, config_.head_dim);
      norm("attn_k_norm.weight", layer, config_.head_dim);
    } else {
      matrix("attn_qkv.weight", layer, hidden, config_.conv_channels());
      matrix("attn_gate.weight", layer, hidden, config_.delta_value_width());
      matrix("ssm_beta.weight", layer, hidden, config_.delta_value_heads);
      matrix("ssm_alpha.weight", layer, hidden, config_.delta_value_heads);
      matrix("ssm_out.weight", layer, config_.delta_value_width(), hidden);
      matrix("ssm_conv1d.weight", layer, config_.conv_kernel, config_.conv_channels());
      add("ssm_a", layer, config_.delta_value_heads, 1, -0.6f, 0.3f);
      matrix("ssm_dt.bias", layer, config_.delta_value_heads, 1);
      norm("ssm_norm.weight", layer, config_.delta_head_dim);
    }
    add("ffn_gate_inp.weight", layer, hidden, config_.experts, 0.0f, 1.0f);
    matrix("ffn_gate_shexp.weight", layer, hidden, config_.shared_width);
    matrix("ffn_up_shexp.weight", layer, hidden, config_.shared_width);
    matrix("ffn_down_shexp.weight", layer, config_.shared_width, hidden);
    matrix("ffn_gate_inp_shexp.weight", layer, hidden, 1);
    const auto gate = static_cast<std::uint32_t>(experts_.gate);
    backend.unsealed_weights().set_expert_types(static_cast<std::size_t>(layer), gate, gate,
                                                static_cast<std::uint32_t>(experts_.down));
  }

  // Exactly as many bytes as experts take: a read beyond the last one is seen. Only affine kernels of a GPU may read the
  // whole word that the last byte is in.
  void add_experts() {
    const std::size_t word = cpu::is_affine(experts_.down) ? 4 : 1;
    slab_.resize((experts_.first_byte + config_.layers * config_.experts * expert_bytes() + word - 1) / word * word);
    std::size_t at = experts_.first_byte;
    for (std::size_t i = 0; i < config_.layers * config_.experts; ++i) {
      const auto bytes = std::span(slab_).subspan(at, expert_bytes());
      fill_blocks(bytes.first(gate_bytes()), cpu::traits_of(experts_.gate), next_word(state_));
      fill_blocks(bytes.subspan(gate_bytes(), gate_bytes()), cpu::traits_of(experts_.gate), next_word(state_));
      fill_blocks(bytes.last(down_bytes()), cpu::traits_of(experts_.down), next_word(state_));
      at += expert_bytes();
    }
  }

  cpu::ModelConfig config_;
  StepExperts experts_;
  std::uint64_t state_ = 3;
  std::vector<std::vector<std::uint8_t>> tensors_;
  std::vector<std::uint8_t> slab_;
  std::vector<std::int32_t> rows_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<float> logits_;

 public:
  Backend backend;  // behind what it was given, so that it goes first: a GPU may still be reading
};

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace moestream::test
