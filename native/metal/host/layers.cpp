// Pipelines, embedding, norm, router, sum and head; the mixers are in layers_attention.cpp and layers_delta_net.cpp.
#include "layers.h"

#include <array>
#include <cmath>

#include "../kernels/arguments.h"

namespace moestream::metal {

using cpu::TensorType;

Layers::Layers(Kernels& kernels, const ModelConfig& config, const cpu::Weights& weights, const GpuWeights& gpu_weights,
               const GpuMemory& memory, const cpu::SequenceStore& sequences, const MappedMemory& state)
    : config_(config),
      weights_(gpu_weights),
      memory_(memory),
      sequences_(sequences),
      state_(state),
      products_(kernels) {
  prepare(kernels, weights);
}

void Layers::prepare(Kernels& kernels, const cpu::Weights& weights) {
  pipelines_.embed = &kernels.pipeline("embed_" + kernel_name(weights_.embedding().type));
  pipelines_.rms_norm = &kernels.pipeline("rms_norm");
  pipelines_.combine = &kernels.pipeline("combine");
  pipelines_.router_choose = &kernels.pipeline("router_choose");
  if (config_.attention_layer_count() > 0) {
    const std::string kv = kernel_name(cpu::tensor_type_of(config_.kv_type));
    pipelines_.attention_prepare = &kernels.pipeline("attention_prepare_" + kv);
    pipelines_.attention = &kernels.pipeline("attention_" + kv);
    pipelines_.attention_merge = &kernels.pipeline("attention_merge");
  }
  if (config_.delta_layer_count() > 0) {
    pipelines_.convolve = &kernels.pipeline("convolve");
    pipelines_.delta_step = &kernels.pipeline("delta_step");
    pipelines_.delta_chunk = &kernels.pipeline("delta_chunk");
  }
  products_.prepare(TensorType::F32);  // the gate of the shared expert
  products_.prepare(weights_.head().type);
  for (std::size_t index = 0; index < config_.layers; ++index) {
    const GpuLayer& layer = weights_.layer(index);
    for (const GpuMatrix* each : {&layer.query, &layer.key, &layer.value, &layer.attention_out, &layer.conv_in,
                                  &layer.delta_gate, &layer.beta, &layer.alpha, &layer.beta_alpha, &layer.delta_out,
                                  &layer.router, &layer.shared_gate, &layer.shared_up, &layer.shared_down}) {
      if (each->given()) products_.prepare(each->type);
    }
    const cpu::ExpertTypes& types = weights.layer(index).expert_types;
    for (const TensorType each : {types.gate, types.up, types.down}) products_.prepare(each);
    const std::string scores = "router_scores_" + kernel_name(layer.router.type);
    router_scores_.push_back(kernels.has(scores) ? &kernels.pipeline(scores) : nullptr);
  }
}

RowMap Layers::every_row(std::size_t count) const { return {at(memory_.identity), at(memory_.identity), count, false}; }

void Layers::norm(Commands& commands, const Place& stream, const Place& weight, std::size_t row_count, bool add) const {
  const gpu::NormArguments arguments{.count = static_cast<std::uint32_t>(config_.hidden),
                                     .add = add ? 1u : 0u,
                                     .epsilon = config_.rms_epsilon,
                                     .unused = 0};
  Dispatch(commands, *pipelines_.rms_norm)
      .buffer(0, stream)
      .buffer(1, at(memory_.mixed))
      .buffer(2, weight)
      .buffer(3, at(memory_.normed))
      .arguments(4, arguments)
      .run({row_count, 1, 1}, gpu::kRowThreads);
}

void Layers::embed(Commands& commands, const cpu::Batch& batch) const {
  constexpr std::size_t kEmbedThreads = 128;
  const gpu::EmbedArguments arguments{.hidden = static_cast<std::uint32_t>(config_.hidden),
                                      .vocabulary = static_cast<std::uint32_t>(config_.vocabulary)};
  Dispatch dispatch(commands, *pipelines_.embed);
  bind_matrix(dispatch, weights_.embedding(), 4);
  dispatch.buffer(1, at(memory_.rows))
      .buffer(2, at(memory_.stream))
      .arguments(3, arguments)
      .run({batch.rows.size(), 1, 1}, kEmbedThreads);
  commands.barrier();
  norm(commands, at(memory_.stream), weights_.layer(0).mixer_norm, batch.rows.size(), false);
}

void Layers::mix(Commands& commands, std::size_t layer, const cpu::Batch& batch) const {
  commands.barrier();
  if (config_.is_attention(layer)) {
    attention(commands, layer, batch);
  } else {
    delta_net(commands, layer, batch);
  }
  commands.barrier();
  norm(commands, at(memory_.stream), weights_.layer(layer).moe_norm, batch.rows.size(), true);
  commands.barrier();
  route(commands, layer, batch.rows.size());
}

void Layers::route(Commands& commands, std::size_t layer, std::size_t row_count) const {
  const GpuMatrix& router = weights_.layer(layer).router;
  const gpu::RouterArguments arguments{.experts = router.rows,
                                       .cols = router.cols,
                                       .choices = static_cast<std::uint32_t>(config_.experts_per_token),
                                       .unused = 0};
  if (router_scores_[layer] != nullptr) {
    Dispatch dispatch(commands, *router_scores_[layer]);
    bind_matrix(dispatch, router, 4);
    dispatch.buffer(1, at(memory_.normed))
        .buffer(2, at(memory_.scores))
        .arguments(3, arguments)
        .run({(router.rows + gpu::kRouterExperts - 1) / gpu::kRouterExperts, row_count, 1}, gpu::kRouterThreads);
  } else {
    const std::array<Product, 1> product{{{router, at(memory_.scores)}}};
    products_.multiply(commands, at(memory_.normed), every_row(row_count), product);
  }
  commands.barrier();
  Dispatch(commands, *pipelines_.router_choose)
      .buffer(0, at(memory_.scores))
      .buffer(1, at(memory_.route_ids))
      .buffer(2, at(memory_.route_weights))
      .arguments(3, arguments)
      .run({row_count, 1, 1}, gpu::kSimdWidth);
}

FeedForward Layers::shared_block(std::size_t layer, std::size_t row_count) const {
  const GpuLayer& weights = weights_.layer(layer);
  return {weights.shared_gate,
          weights.shared_up,
          weights.shared_down,
          every_row(row_count),
          every_row(row_count),
          at(memory_.shared_inner),
          at(memory_.shared_inner_gate),
          at(memory_.shared_inner_up),
          at(memory_.shared_output)};
}

void Layers::shared_score(Commands& commands, std::size_t layer, std::size_t row_count) const {
  const std::array<Product, 1> product{{{weights_.layer(layer).shared_mix, at(memory_.shared_score)}}};
  products_.multiply(commands, at(memory_.normed), every_row(row_count), product);
}

void Layers::combine(Commands& commands, std::size_t layer, std::size_t row_count) const {
  const bool shared = config_.shared_width > 0;
  const bool more = layer + 1 < config_.layers;
  const gpu::CombineArguments arguments{.hidden = static_cast<std::uint32_t>(config_.hidden),
                                        .choices = static_cast<std::uint32_t>(config_.experts_per_token),
                                        .shared = shared ? 1u : 0u,
                                        .norm = more ? 1u : 0u,
                                        .epsilon = config_.rms_epsilon,
                                        .unused = {}};
  Dispatch(commands, *pipelines_.combine)
      .buffer(0, at(memory_.routed))
      .buffer(1, at(memory_.route_weights))
      .buffer(2, shared ? at(memory_.shared_output) : at(memory_.routed))
      .buffer(3, shared ? at(memory_.shared_score) : at(memory_.routed))
      .buffer(4, at(memory_.stream))
      .buffer(5, more ? weights_.layer(layer + 1).mixer_norm : weights_.final_norm())
      .buffer(6, at(memory_.normed))
      .arguments(7, arguments)
      .run({row_count, 1, 1}, gpu::kRowThreads);
}

void Layers::head(Commands& commands, std::size_t first_row, std::size_t row_count, const Buffer& logits) const {
  norm(commands, at(memory_.stream, first_row * config_.hidden * sizeof(float)), weights_.final_norm(), row_count, false);
  commands.barrier();
  const std::array<Product, 1> product{{{weights_.head(), at(logits)}}};
  products_.multiply(commands, at(memory_.normed), every_row(row_count), product);
}

}  // namespace moestream::metal
