// What a layer is on the GPU: the dispatches of its parts, in order, with the barriers between them.
//
// Nothing here waits or commits, and nothing looks at a result: the parts of a layer up to its router, and the sum behind
// its experts, are encoded from what is known when a step begins. The meaning of each part is that of native/cpu.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "../../cpu/batch.h"
#include "../../cpu/sequence_state.h"
#include "commands.h"
#include "gpu_memory.h"
#include "gpu_weights.h"
#include "kernels.h"
#include "products.h"

namespace moestream::metal {

class Layers {
 public:
  // Makes every pipeline that the model needs. Throws GpuError.
  Layers(Kernels& kernels, const ModelConfig& config, const cpu::Weights& weights, const GpuWeights& gpu_weights,
         const GpuMemory& memory, const cpu::SequenceStore& sequences, const MappedMemory& state);

  const Products& products() const { return products_; }

  // The rows' embeddings into the stream, and the norm before the first layer.
  void embed(Commands& commands, const cpu::Batch& batch) const;
  // From the normed stream to the routes.
  void mix(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  // The shared expert as a block beside the routed ones, and the score of its gate.
  FeedForward shared_block(std::size_t layer, std::size_t row_count) const;
  void shared_score(Commands& commands, std::size_t layer, std::size_t row_count) const;
  // The weighted sum behind the experts, and the norm before the next layer where there is one.
  void combine(Commands& commands, std::size_t layer, std::size_t row_count) const;
  // Logits of some rows into `logits` from its start.
  void head(Commands& commands, std::size_t first_row, std::size_t row_count, const Buffer& logits) const;

 private:
  struct Pipelines {
    const Pipeline* embed = nullptr;
    const Pipeline* rms_norm = nullptr;
    const Pipeline* combine = nullptr;
    const Pipeline* router_choose = nullptr;
    const Pipeline* attention_prepare = nullptr;
    const Pipeline* attention = nullptr;
    const Pipeline* attention_merge = nullptr;
    const Pipeline* convolve = nullptr;
    const Pipeline* delta_step = nullptr;
    const Pipeline* delta_chunk = nullptr;
  };

  void prepare(Kernels& kernels, const cpu::Weights& weights);
  RowMap every_row(std::size_t count) const;
  void norm(Commands& commands, const Place& stream, const Place& weight, std::size_t row_count, bool add) const;
  void attention(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  void attend(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  void delta_net(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  void convolve(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  void advance(Commands& commands, std::size_t layer, const cpu::Batch& batch) const;
  void route(Commands& commands, std::size_t layer, std::size_t row_count) const;
  Place state_of(const void* memory, std::size_t bytes) const { return state_.find(memory, bytes); }

  const ModelConfig& config_;
  const GpuWeights& weights_;
  const GpuMemory& memory_;
  const cpu::SequenceStore& sequences_;
  const MappedMemory& state_;
  Products products_;
  Pipelines pipelines_;
  std::vector<const Pipeline*> router_scores_;  // (layers), null where the router is a product like others
};

}  // namespace moestream::metal
