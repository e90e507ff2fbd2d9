// The table of tensors behind weights.h. `set`, `seal` and `kept_bytes` all read it, so that a tensor's name, place and
// shape are written down once.
#include "weights.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string_view>
#include <variant>

#include "fingerprint.h"
#include "memory.h"
#include "row_reader.h"

namespace moestream::cpu {
namespace {

enum class Scope { kEveryLayer, kAttention, kDelta, kShared };
enum class Need { kAlways, kOneOfSeveral };

using Width = std::size_t (*)(const ModelConfig&);

template <class Owner>
struct TensorSpec {
  std::string_view name;
  Scope scope;
  Need need;
  std::variant<Matrix Owner::*, Vector Owner::*> target;
  Width cols;
  Width rows;
};

std::size_t one(const ModelConfig&) { return 1; }
std::size_t hidden(const ModelConfig& c) { return c.hidden; }
std::size_t vocabulary(const ModelConfig& c) { return c.vocabulary; }
std::size_t head_dim(const ModelConfig& c) { return c.head_dim; }
std::size_t query_width(const ModelConfig& c) { return c.query_width(); }
std::size_t kv_width(const ModelConfig& c) { return c.kv_width(); }
std::size_t attended_width(const ModelConfig& c) { return c.attended_width(); }
std::size_t conv_channels(const ModelConfig& c) { return c.conv_channels(); }
std::size_t conv_kernel(const ModelConfig& c) { return c.conv_kernel; }
std::size_t delta_value_width(const ModelConfig& c) { return c.delta_value_width(); }
std::size_t delta_value_heads(const ModelConfig& c) { return c.delta_value_heads; }
std::size_t twice_value_heads(const ModelConfig& c) { return 2 * c.delta_value_heads; }
std::size_t delta_head_dim(const ModelConfig& c) { return c.delta_head_dim; }
std::size_t experts(const ModelConfig& c) { return c.experts; }
std::size_t shared_width(const ModelConfig& c) { return c.shared_width; }

using Layer = LayerWeights;
constexpr auto kEvery = Scope::kEveryLayer;
constexpr auto kAttention = Scope::kAttention;
constexpr auto kDelta = Scope::kDelta;
constexpr auto kShared = Scope::kShared;
constexpr auto kAlways = Need::kAlways;
constexpr auto kOneOf = Need::kOneOfSeveral;

constexpr std::array<TensorSpec<Layer>, 24> kLayerTensors{{
    {"attn_norm.weight", kEvery, kAlways, &Layer::mixer_norm, hidden, one},
    {"post_attention_norm.weight", kEvery, kOneOf, &Layer::moe_norm, hidden, one},
    {"ffn_norm.weight", kEvery, kOneOf, &Layer::moe_norm, hidden, one},
    {"attn_q.weight", kAttention, kAlways, &Layer::query, hidden, query_width},
    {"attn_k.weight", kAttention, kAlways, &Layer::key, hidden, kv_width},
    {"attn_v.weight", kAttention, kAlways, &Layer::value, hidden, kv_width},
    {"attn_output.weight", kAttention, kAlways, &Layer::attention_out, attended_width, hidden},
    {"attn_q_norm.weight", kAttention, kAlways, &Layer::query_norm, head_dim, one},
    {"attn_k_norm.weight", kAttention, kAlways, &Layer::key_norm, head_dim, one},
    {"attn_qkv.weight", kDelta, kAlways, &Layer::conv_in, hidden, conv_channels},
    {"attn_gate.weight", kDelta, kAlways, &Layer::delta_gate, hidden, delta_value_width},
    {"ssm_beta.weight", kDelta, kOneOf, &Layer::beta, hidden, delta_value_heads},
    {"ssm_alpha.weight", kDelta, kOneOf, &Layer::alpha, hidden, delta_value_heads},
    {"ssm_ba.weight", kDelta, kOneOf, &Layer::beta_alpha, hidden, twice_value_heads},
    {"ssm_out.weight", kDelta, kAlways, &Layer::delta_out, delta_value_width, hidden},
    {"ssm_conv1d.weight", kDelta, kAlways, &Layer::conv, conv_kernel, conv_channels},
    {"ssm_a", kDelta, kAlways, &Layer::decay_rate, delta_value_heads, one},
    {"ssm_dt.bias", kDelta, kAlways, &Layer::decay_bias, delta_value_heads, one},
    {"ssm_norm.weight", kDelta, kAlways, &Layer::delta_norm, delta_head_dim, one},
    {"ffn_gate_inp.weight", kEvery, kAlways, &Layer::router, hidden, experts},
    {"ffn_gate_shexp.weight", kShared, kAlways, &Layer::shared_gate, hidden, shared_width},
    {"ffn_up_shexp.weight", kShared, kAlways, &Layer::shared_up, hidden, shared_width},
    {"ffn_down_shexp.weight", kShared, kAlways, &Layer::shared_down, shared_width, hidden},
    {"ffn_gate_inp_shexp.weight", kShared, kAlways, &Layer::shared_mix, hidden, one},
}};

constexpr std::array<TensorSpec<GlobalWeights>, 3> kGlobalTensors{{
    {"token_embd.weight", kEvery, kAlways, &GlobalWeights::embedding, hidden, vocabulary},
    {"output.weight", kEvery, kOneOf, &GlobalWeights::head, hidden, vocabulary},
    {"output_norm.weight", kEvery, kAlways, &GlobalWeights::final_norm, hidden, one},
}};

bool applies(Scope scope, const ModelConfig& config, std::size_t layer) {
  switch (scope) {
    case Scope::kEveryLayer: return true;
    case Scope::kAttention: return config.is_attention(layer);
    case Scope::kDelta: return !config.is_attention(layer);
    case Scope::kShared: return config.shared_width > 0;
  }
  return false;
}

std::string full_name(std::string_view name, std::int64_t layer) {
  std::string full;
  if (layer >= 0) full.append("blk.").append(std::to_string(layer)).append(".");
  return full.append(name);
}

std::string shape_text(std::size_t cols, std::size_t rows) {
  return std::string("[").append(std::to_string(cols)).append(", ").append(std::to_string(rows)).append("]");
}


void check_bytes(const std::string& name, std::size_t found, std::size_t expected) {
  if (found == expected) return;
  throw std::invalid_argument(name + " has " + std::to_string(found) + " bytes, its shape needs " +
                              std::to_string(expected));
}

Matrix checked_tensor(const std::string& name, std::uint32_t type_id, std::size_t cols, std::size_t rows,
                      const TensorBytes& bytes) {
  const TypeTraits* type = find_type(type_id);
  if (type == nullptr) throw std::invalid_argument(name + " has unsupported type " + std::to_string(type_id));
  if (cols == 0 || rows == 0 || cols % type->block_values != 0) {
    throw std::invalid_argument(name + " has shape " + shape_text(cols, rows) + ", not whole blocks of " +
                                std::string(type->name));
  }
  check_bytes(name, bytes.data.size(), product({rows, row_bytes(type->type, cols)}));
  const std::size_t side_bytes = product({rows, side_row_bytes(type->type, cols)});
  check_bytes(name + " (scales)", bytes.scales.size(), side_bytes);
  check_bytes(name + " (biases)", bytes.biases.size(), side_bytes);
  return {type->type, cols, rows, bytes.data.data(), bytes.scales.data(), bytes.biases.data()};
}

void store(Matrix& matrix, const Matrix& given) { matrix = given; }

void store(Vector& vector, const Matrix& given) {
  vector = Vector{given.cols, given.rows, std::vector<float>(given.cols * given.rows)};
  RowReader(given).read(0, given.rows, vector.values.data());
}

template <class Owner>
void store(Owner& owner, const TensorSpec<Owner>& spec, const std::string& name, const Matrix& given) {
  std::visit(
      [&](auto member) {
        if ((owner.*member).given()) throw std::invalid_argument(name + " is given twice");
        store(owner.*member, given);
      },
      spec.target);
}

// Throws when the tensor is there in a wrong shape, or is not there and nothing may stand for it.
template <class Owner>
void check(const Owner& owner, const TensorSpec<Owner>& spec, const ModelConfig& config, std::int64_t layer) {
  std::visit(
      [&](auto member) {
        const auto& tensor = owner.*member;
        const std::size_t cols = spec.cols(config);
        const std::size_t rows = spec.rows(config);
        if (!tensor.given()) {
          if (spec.need == Need::kAlways) throw std::runtime_error(full_name(spec.name, layer) + " is missing");
        } else if (tensor.cols != cols || tensor.rows != rows) {
          throw std::runtime_error(full_name(spec.name, layer) + " has shape " + shape_text(tensor.cols, tensor.rows) +
                                   ", the model needs " + shape_text(cols, rows));
        }
      },
      spec.target);
}

template <class Specs>
const auto& find_spec(const Specs& specs, std::string_view wanted, const std::string& name) {
  const auto found = std::ranges::find_if(specs, [&](const auto& each) { return each.name == wanted; });
  if (found == specs.end()) throw std::invalid_argument("no use is known for tensor " + name);
  return *found;
}

// One tap after the other, so that neighbouring channels of a tap stand together.
void transpose(Vector& vector) {
  std::vector<float> transposed(vector.values.size());
  for (std::size_t row = 0; row < vector.rows; ++row) {
    for (std::size_t col = 0; col < vector.cols; ++col) {
      transposed[col * vector.rows + row] = vector.values[row * vector.cols + col];
    }
  }
  vector = Vector{vector.rows, vector.cols, std::move(transposed)};
}

// Samples of the bytes are enough to tell models apart: training and quantising change all of a tensor.
std::uint64_t tensor_fingerprint(const std::string& name, std::uint32_t type, std::size_t cols, std::size_t rows,
                                 const TensorBytes& bytes) {
  constexpr std::size_t kSamples = 64;
  constexpr std::size_t kSampleBytes = 32;
  Fingerprint sum;
  sum.add({reinterpret_cast<const std::uint8_t*>(name.data()), name.size()});
  sum.add(type);
  sum.add(cols);
  sum.add(rows);
  for (const std::span<const std::uint8_t> part : {bytes.data, bytes.scales, bytes.biases}) {
    const std::size_t stride = std::max(kSampleBytes, part.size() / kSamples);
    for (std::size_t at = 0; at < part.size(); at += stride) {
      sum.add(part.subspan(at, std::min(kSampleBytes, part.size() - at)));
    }
  }
  return sum.value();
}

TensorType expert_type(std::uint32_t id, std::size_t cols, std::size_t layer) {
  const TypeTraits* type = find_type(id);
  const std::string name = full_name("ffn_*_exps.weight", static_cast<std::int64_t>(layer));
  if (type == nullptr) throw std::invalid_argument(name + " has unsupported type " + std::to_string(id));
  if (cols % type->block_values != 0) {
    throw std::invalid_argument(name + ": rows of " + std::to_string(cols) + " values are not whole blocks of " +
                                std::string(type->name));
  }
  return type->type;
}

}  // namespace

Weights::Weights(const ModelConfig& config) : config_(config), layers_(config.layers) {}

void Weights::set(const std::string& name, std::int64_t layer, std::uint32_t type, std::size_t cols, std::size_t rows,
                  const TensorBytes& bytes) {
  const std::string full = full_name(name, layer);
  const Matrix given = checked_tensor(full, type, cols, rows, bytes);
  if (layer < 0) {
    store(global_, find_spec(kGlobalTensors, name, full), full, given);
  } else {
    const std::size_t index = static_cast<std::size_t>(layer);
    if (index >= config_.layers) throw std::invalid_argument(full + " is beyond the last layer");
    const auto& spec = find_spec(kLayerTensors, name, full);
    if (!applies(spec.scope, config_, index)) throw std::invalid_argument(full + " has no place in this kind of layer");
    store(layers_[index], spec, full, given);
  }
  fingerprint_ += tensor_fingerprint(full, type, cols, rows, bytes);
}

void Weights::set_expert_types(std::size_t layer, std::uint32_t gate, std::uint32_t up, std::uint32_t down) {
  if (layer >= config_.layers) throw std::invalid_argument("expert types are given for a layer beyond the last");
  layers_[layer].expert_types = ExpertTypes{expert_type(gate, config_.hidden, layer),
                                            expert_type(up, config_.hidden, layer),
                                            expert_type(down, config_.expert_width, layer), true};
}

void Weights::check_layer(std::size_t index) const {
  const LayerWeights& layer = layers_[index];
  const std::int64_t number = static_cast<std::int64_t>(index);
  for (const auto& spec : kLayerTensors) {
    if (applies(spec.scope, config_, index)) check(layer, spec, config_, number);
  }
  const auto missing = [number](std::string_view name) {
    return std::runtime_error(full_name(name, number) + " is missing");
  };
  if (!layer.moe_norm.given()) throw missing("post_attention_norm.weight");
  if (!config_.is_attention(index)) {
    const bool apart = layer.beta.given() && layer.alpha.given();
    if (!apart && !layer.beta_alpha.given()) {
      throw missing(layer.beta.given() ? "ssm_alpha.weight" : "ssm_beta.weight");
    }
  }
  if (!layer.expert_types.given) throw missing("ffn_*_exps.weight");
}

void Weights::seal() {
  for (const auto& spec : kGlobalTensors) check(global_, spec, config_, -1);
  for (std::size_t layer = 0; layer < config_.layers; ++layer) check_layer(layer);
  if (!global_.head.given()) global_.head = global_.embedding;
  for (LayerWeights& layer : layers_) {
    if (layer.conv.given()) transpose(layer.conv);
  }
}

std::size_t Weights::kept_bytes(const ModelConfig& config) {
  std::size_t bytes = config.hidden * sizeof(float);  // output_norm
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    for (const auto& spec : kLayerTensors) {
      const bool kept = std::holds_alternative<Vector Layer::*>(spec.target);
      // Two names stand for the norm before the experts; it is kept once.
      if (!kept || spec.name == "ffn_norm.weight" || !applies(spec.scope, config, layer)) continue;
      bytes += product({spec.cols(config), spec.rows(config), sizeof(float)});
    }
  }
  return bytes;
}

}  // namespace moestream::cpu
