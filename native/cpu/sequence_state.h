// What a sequence remembers between steps: keys and values of its attention layers, and for each DeltaNet layer the
// last inputs of the convolution and one state matrix per value head.
//
// A state matrix cannot be rolled back, so a step that ends halfway leaves its sequences unsettled, and an unsettled
// sequence takes no more tokens until it is reset. States are float32: 195 MB per sequence for 397B parameters. Keys and
// values are of the configuration's type, as float32 61 KB per position of that model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memory.h"
#include "model_config.h"

namespace moestream::cpu {

class SequenceStore {
 public:
  explicit SequenceStore(const ModelConfig& config);

  // (contextLength, headDim) of one head: rows of ModelConfig::kv_row_bytes.
  std::uint8_t* keys(std::size_t sequence, std::size_t layer, std::size_t kv_head) const;
  std::uint8_t* values(std::size_t sequence, std::size_t layer, std::size_t kv_head) const;
  // (convKernel - 1, convChannels), oldest first.
  float* conv_history(std::size_t sequence, std::size_t layer) const;
  // (deltaHeadDim keys, deltaHeadDim values) of one value head.
  float* delta_state(std::size_t sequence, std::size_t layer, std::size_t value_head) const;

  std::size_t token_count(std::size_t sequence) const { return sequences_[sequence].token_count; }
  bool settled(std::size_t sequence) const { return sequences_[sequence].settled; }
  void extend(std::size_t sequence, std::size_t tokens);
  void settle(std::size_t sequence) { sequences_[sequence].settled = true; }
  // A step that had been taken for ended turns out not to have.
  void unsettle(std::size_t sequence) { sequences_[sequence].settled = false; }
  void reset(std::size_t sequence);
  // `to` forgets what it was and becomes what `from` is.
  void copy(std::size_t from, std::size_t to);

  // All that a sequence of so many positions remembers, in an order that depends on the configuration alone; nothing
  // for 0 positions.
  std::vector<std::span<std::byte>> parts(std::size_t sequence, std::size_t positions) const;

  // All keys and values, and all states: for a backend that lets a GPU at them.
  std::span<std::byte> kv_memory() const { return kv_.all(); }
  std::span<std::byte> state_memory() const { return state_.all(); }

  static std::size_t kv_bytes(const ModelConfig& config);
  static std::size_t state_bytes(const ModelConfig& config);

 private:
  struct Sequence {
    std::size_t token_count = 0;
    bool settled = true;
  };

  std::uint8_t* kv_head(std::size_t sequence, std::size_t layer, std::size_t which, std::size_t kv_head) const;
  float* delta_layer(std::size_t sequence, std::size_t layer) const;

  const ModelConfig& config_;
  std::vector<std::size_t> ordinal_;  // (layers): number of earlier layers of the same kind
  Memory kv_;                         // (sequences, attention layers, 2, kvHeads, contextLength, headDim)
  Memory state_;                      // (sequences, DeltaNet layers, history then states)
  std::vector<Sequence> sequences_;
};

}  // namespace moestream::cpu
