// The dense weights: which tensors the architecture needs, in which shape, and where their bytes are.
//
// Matrices stay in the caller's memory, quantised as they are. One-dimensional tensors and the convolution are widened
// to float32 once and kept (12 MB for 397B parameters). A tensor with a name that the backend does not know is
// refused: a weight that is left out would give a wrong answer without a sign of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "matmul.h"
#include "model_config.h"

namespace moestream::cpu {

// A small tensor, widened.
struct Vector {
  std::size_t cols = 0;
  std::size_t rows = 0;
  std::vector<float> values;

  bool given() const { return !values.empty(); }
  const float* data() const { return values.data(); }
};

struct ExpertTypes {
  TensorType gate = TensorType::F32;
  TensorType up = TensorType::F32;
  TensorType down = TensorType::F32;
  bool given = false;
};

struct LayerWeights {
  Vector mixer_norm;  // (hidden)
  Vector moe_norm;    // (hidden)

  // Full attention.
  Matrix query;         // (heads * [headDim query, headDim gate], hidden)
  Matrix key;           // (kvWidth, hidden)
  Matrix value;         // (kvWidth, hidden)
  Matrix attention_out; // (hidden, attendedWidth)
  Vector query_norm;    // (headDim)
  Vector key_norm;      // (headDim)

  // Gated DeltaNet.
  Matrix conv_in;     // (convChannels, hidden)
  Matrix delta_gate;  // (deltaValueWidth, hidden)
  Matrix beta;        // (deltaValueHeads, hidden)
  Matrix alpha;       // (deltaValueHeads, hidden)
  Matrix beta_alpha;  // (2 * deltaValueHeads, hidden), instead of beta and alpha
  Matrix delta_out;   // (hidden, deltaValueWidth)
  Vector conv;        // (convKernel, convChannels) once sealed; files hold (convChannels, convKernel)
  Vector decay_rate;  // (deltaValueHeads): -exp(A_log)
  Vector decay_bias;  // (deltaValueHeads)
  Vector delta_norm;  // (deltaHeadDim)

  // Mixture of experts.
  Matrix router;       // (experts, hidden)
  Matrix shared_gate;  // (sharedWidth, hidden)
  Matrix shared_up;    // (sharedWidth, hidden)
  Matrix shared_down;  // (hidden, sharedWidth)
  Vector shared_mix;   // (hidden): the gate of the shared expert's output
  ExpertTypes expert_types;
};

struct GlobalWeights {
  Matrix embedding;  // (vocabulary, hidden)
  Matrix head;       // (vocabulary, hidden), the embedding when the file has none
  Vector final_norm; // (hidden)
};

// A tensor as it lies in memory.
struct TensorBytes {
  std::span<const std::uint8_t> data;
  std::span<const std::uint8_t> scales;  // of affine types only
  std::span<const std::uint8_t> biases;
};

class Weights {
 public:
  explicit Weights(const ModelConfig& config);

  // `layer` is -1 outside the layers. Throws std::invalid_argument for a tensor that the architecture has no use for,
  // one given twice, or one whose bytes do not fit its shape.
  void set(const std::string& name, std::int64_t layer, std::uint32_t type, std::size_t cols, std::size_t rows,
           const TensorBytes& bytes);
  void set_expert_types(std::size_t layer, std::uint32_t gate, std::uint32_t up, std::uint32_t down);
  // Throws std::runtime_error naming the first tensor that is missing or has a wrong shape, and changes nothing then.
  void seal();

  const LayerWeights& layer(std::size_t index) const { return layers_[index]; }
  const GlobalWeights& global() const { return global_; }
  // Of names, shapes, types and samples of the bytes, whatever the order in which they were given.
  std::uint64_t fingerprint() const { return fingerprint_; }

  // Bytes of the small tensors that are kept as float32.
  static std::size_t kept_bytes(const ModelConfig& config);

 private:
  void check_layer(std::size_t index) const;

  const ModelConfig& config_;
  std::vector<LayerWeights> layers_;
  GlobalWeights global_;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace moestream::cpu
