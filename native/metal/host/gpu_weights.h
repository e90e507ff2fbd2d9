// The dense weights where the GPU finds them.
//
// Matrices stay in the caller's memory, seen through one no-copy mapping, which is also what a residency set keeps in
// place. The small tensors that the CPU backend widens to float32 are copied into one buffer.
#pragma once

#include <cstdint>
#include <vector>

#include "../../cpu/weights.h"
#include "gpu_memory.h"
#include "mapped_memory.h"

namespace moestream::metal {

struct GpuMatrix {
  cpu::TensorType type = cpu::TensorType::F32;
  std::uint32_t cols = 0;
  std::uint32_t rows = 0;
  Place place;
  Place scales, biases;  // of affine types

  bool given() const { return place.buffer != nullptr; }
};

struct GpuLayer {
  Place mixer_norm, moe_norm;
  GpuMatrix query, key, value, attention_out;
  Place query_norm, key_norm;
  GpuMatrix conv_in, delta_gate, beta, alpha, beta_alpha, delta_out;
  Place conv, decay_rate, decay_bias, delta_norm;
  GpuMatrix router, shared_gate, shared_up, shared_down;
  GpuMatrix shared_mix;  // (1, hidden)
};

class GpuWeights {
 public:
  // `weights` is sealed and outlives this. Throws GpuError for what the kernels cannot read.
  GpuWeights(const Device& device, const ModelConfig& config, const cpu::Weights& weights);

  const GpuLayer& layer(std::size_t index) const { return layers_[index]; }
  const GpuMatrix& embedding() const { return embedding_; }
  const GpuMatrix& head() const { return head_; }
  const Place& final_norm() const { return final_norm_; }
  // Everything that every token reads.
  std::vector<const Buffer*> buffers() const;

 private:
  MappedMemory matrices_;
  Buffer small_;
  std::vector<GpuLayer> layers_;
  GpuMatrix embedding_, head_;
  Place final_norm_;
};

// Bytes at which a matrix of this type may begin: the kernels read that much at once.
std::size_t alignment_of(cpu::TensorType type);
// The longest of the arrays that a matrix has.
std::size_t longest_array(cpu::TensorType type, std::size_t cols, std::size_t rows);
// Where the GPU finds a matrix of this memory; not given when it is not. Throws GpuError when no kernel could read it.
GpuMatrix gpu_matrix(const MappedMemory& memory, const cpu::Matrix& matrix);

}  // namespace moestream::metal
