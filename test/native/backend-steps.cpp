// The whole forward pass on a small random model: chunks, threads, neighbours in a batch, copies and saved states give
// the same bits as one row at a time; damaged states are refused. For the sanitizers, which see what a right answer hides.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "../../native/cpu/backend.h"
#include "../../native/cpu/saved_sequence.h"
#include "check.h"
#include "random_blocks.h"

namespace {

using namespace moestream::cpu;
using moestream::test::check;
using moestream::test::next_float;
using moestream::test::next_word;
using moestream::test::throws;

// The widths of the fast formats; experts of a type with blocks of 256, and one with blocks of 32.
constexpr TensorType kGate = TensorType::IQ3_XXS;
constexpr TensorType kDown = TensorType::Q8_0;

ModelConfig config_of(Precision precision, KvType kv_type, std::size_t threads) {
  ModelConfig config;
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

class Model {
 public:
  explicit Model(const ModelConfig& config) : backend(config), config_(config) {
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

  // One step; row by row its logits.
  std::vector<float> step(const std::vector<Row>& rows) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::int32_t words[] = {static_cast<std::int32_t>(rows[r].token), static_cast<std::int32_t>(rows[r].position),
                                    static_cast<std::int32_t>(rows[r].sequence), 0};
      std::copy_n(words, 4, rows_.data() + 4 * r);
    }
    backend.begin(rows.size());
    for (std::size_t layer = 0; layer < config_.layers; ++layer) {
      backend.mix(layer);
      backend.shared(layer);
      const auto chosen = ids_.begin() + static_cast<std::ptrdiff_t>(rows.size() * config_.experts_per_token);
      for (const std::int32_t expert : std::set<std::int32_t>(ids_.begin(), chosen)) {
        const std::size_t at = 1 + (layer * config_.experts + static_cast<std::size_t>(expert)) * expert_bytes();
        const ExpertPlaces places{{at}, {at + gate_bytes()}, {at + 2 * gate_bytes()}};
        backend.expert(layer, static_cast<std::size_t>(expert), 0, places);
      }
      backend.combine(layer);
    }
    backend.logits(0, rows.size(), 0);
    return {logits_.begin(), logits_.begin() + static_cast<std::ptrdiff_t>(rows.size() * config_.vocabulary)};
  }

  // Tokens [from, to) of the text of a sequence, in steps of `chunk` rows.
  std::vector<float> feed(std::size_t sequence, std::size_t from, std::size_t to, std::size_t chunk) {
    std::vector<float> all;
    for (std::size_t at = from; at < to; at += chunk) {
      std::vector<Row> rows;
      for (std::size_t p = at; p < std::min(to, at + chunk); ++p) rows.push_back({token_at(p), p, sequence});
      const std::vector<float> some = step(rows);
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  std::size_t token_at(std::size_t position) const { return (position * 29 + 11) % config_.vocabulary; }

  Backend backend;

 private:
  std::size_t gate_bytes() const { return config_.expert_width * row_bytes(kGate, config_.hidden); }
  std::size_t down_bytes() const { return config_.hidden * row_bytes(kDown, config_.expert_width); }
  std::size_t expert_bytes() const { return 2 * gate_bytes() + down_bytes(); }

  void add(const char* name, std::int64_t layer, std::size_t cols, std::size_t rows, float middle, float reach) {
    // The vectors keep their bytes when the list of them grows.
    std::vector<std::uint8_t>& bytes = tensors_.emplace_back(cols * rows * sizeof(float));
    for (std::size_t i = 0; i < cols * rows; ++i) {
      const float value = middle + reach * next_float(state_);
      std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
    backend.unsealed_weights().set(name, layer, static_cast<std::uint32_t>(TensorType::F32), cols, rows,
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
    const auto gate = static_cast<std::uint32_t>(kGate);
    backend.unsealed_weights().set_expert_types(static_cast<std::size_t>(layer), gate, gate,
                                                static_cast<std::uint32_t>(kDown));
  }

  // Exactly as many bytes as experts take, at an odd address: a read beyond the last one is seen.
  void add_experts() {
    slab_.resize(1 + config_.layers * config_.experts * expert_bytes());
    std::size_t at = 1;
    for (std::size_t i = 0; i < config_.layers * config_.experts; ++i) {
      const auto bytes = std::span(slab_).subspan(at, expert_bytes());
      moestream::test::fill_blocks(bytes.first(2 * gate_bytes()), traits_of(kGate), next_word(state_));
      moestream::test::fill_blocks(bytes.last(down_bytes()), traits_of(kDown), next_word(state_));
      at += expert_bytes();
    }
  }

  ModelConfig config_;
  std::uint64_t state_ = 3;
  std::vector<std::vector<std::uint8_t>> tensors_;
  std::vector<std::uint8_t> slab_;
  std::vector<std::int32_t> rows_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<float> logits_;
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr std::size_t kTokens = 24;

std::vector<float> chunks_and_threads(Precision precision, KvType kv_type) {
  Model plain(config_of(precision, kv_type, 1));
  const std::vector<float> expected = plain.feed(0, 0, kTokens, 1);
  bool finite = true;
  for (const float each : expected) finite = finite && std::isfinite(each);
  check(finite, "logits are numbers");
  for (const std::size_t threads : {1, 3}) {
    Model model(config_of(precision, kv_type, threads));
    for (const std::size_t chunk : {5, 16}) {
      model.backend.reset_sequence(1);
      check(same(model.feed(1, 0, kTokens, chunk), expected), "chunks and threads do not change a bit");
    }
  }
  return expected;
}

void neighbours(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(config_of(precision, kv_type, 3));
  // Sequence 0 has a prompt of five rows while sequence 2 decodes.
  std::vector<float> first;
  for (std::size_t p = 0; p < 4; ++p) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < 5; ++i) rows.push_back({model.token_at(5 * p + i), 5 * p + i, 0});
    rows.push_back({model.token_at(p), p, 2});
    const std::vector<float> both = model.step(rows);
    const std::size_t own = 5 * (expected.size() / kTokens);
    first.insert(first.end(), both.begin(), both.begin() + static_cast<std::ptrdiff_t>(own));
  }
  check(same(first, {expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(first.size())}),
        "neighbours do not change a bit");
}

void states(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(config_of(precision, kv_type, 3));
  constexpr std::size_t kHalf = 10;
  model.feed(0, 0, kHalf, 4);
  std::vector<std::uint8_t> saved(model.backend.sequence_bytes(kHalf));
  check(model.backend.save_sequence(0, saved) == saved.size(), "a state has the bytes that were foretold");
  check(throws<std::length_error>([&] { model.backend.save_sequence(0, std::span(saved).first(saved.size() - 1)); }),
        "a state does not go into less");
  model.backend.copy_sequence(0, 1);
  model.backend.restore_sequence(2, saved);
  const std::vector<float> rest(expected.begin() + static_cast<std::ptrdiff_t>(expected.size() / kTokens * kHalf),
                                expected.end());
  for (const std::size_t sequence : {0, 1, 2}) {
    check(same(model.feed(sequence, kHalf, kTokens, 6), rest), "copies and restored states go on alike");
  }
  for (std::size_t at = 0; at < saved.size(); at += 1 + saved.size() / 97) {
    std::vector<std::uint8_t> damaged = saved;
    damaged[at] ^= 0x40;
    check(throws<StateRefused>([&] { model.backend.restore_sequence(1, damaged); }), "a damaged state is refused");
    damaged.resize(at);
    check(throws<StateRefused>([&] { model.backend.restore_sequence(1, damaged); }), "a state cut off is refused");
  }
}

void a_step_that_ends_halfway(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(config_of(precision, kv_type, 3));
  model.feed(0, 0, 3, 3);
  check(throws<std::logic_error>([&] { model.backend.begin(1); }), "a position is not computed twice");
  model.backend.reset_sequence(0);
  model.backend.begin(3);
  model.backend.mix(0);
  check(throws<std::logic_error>([&] { model.backend.combine(0); }), "no expert is left out");
  check(throws<std::logic_error>([&] { model.backend.copy_sequence(0, 1); }), "half a step is not copied");
  check(throws<std::logic_error>([&] { model.backend.expert(0, 0, 0, {{.data = ~std::size_t{0}}, {.data = 0}, {.data = 0}}); }), "a slab has an end");
  model.backend.reset_sequence(0);
  check(same(model.feed(0, 0, kTokens, 7), expected), "a sequence that was reset is new");
}

}  // namespace

int main() {
  for (const Precision precision : {Precision::kExact, Precision::kFast}) {
    for (const KvType kv_type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
      const std::vector<float> expected = chunks_and_threads(precision, kv_type);
      neighbours(precision, kv_type, expected);
      states(precision, kv_type, expected);
      a_step_that_ends_halfway(precision, kv_type, expected);
    }
  }
  return moestream::test::result("backend-steps");
}
