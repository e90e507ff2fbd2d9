// Mapping the matrices and copying the small tensors.
#include "gpu_weights.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "gpu_error.h"

namespace moestream::metal {
namespace {

using cpu::LayerWeights;
using cpu::Matrix;
using cpu::TensorType;
using cpu::Vector;

constexpr std::size_t kSmallAlign = 16;

std::vector<const Matrix*> matrices_of(const LayerWeights& layer) {
  return {&layer.query, &layer.key,  &layer.value,  &layer.attention_out, &layer.conv_in,
          &layer.delta_gate, &layer.beta, &layer.alpha, &layer.beta_alpha,    &layer.delta_out,
          &layer.router, &layer.shared_gate, &layer.shared_up, &layer.shared_down};
}

std::vector<const Vector*> vectors_of(const LayerWeights& layer) {
  return {&layer.mixer_norm, &layer.moe_norm,   &layer.query_norm, &layer.key_norm,  &layer.conv,
          &layer.decay_rate, &layer.decay_bias, &layer.delta_norm, &layer.shared_mix};
}

std::size_t bytes_of(const Matrix& matrix) { return matrix.rows * cpu::row_bytes(matrix.type, matrix.cols); }

std::size_t side_bytes_of(const Matrix& matrix) {
  return matrix.rows * cpu::side_row_bytes(matrix.type, matrix.cols);
}

std::vector<const Matrix*> all_matrices(const ModelConfig& config, const cpu::Weights& weights) {
  std::vector<const Matrix*> all = {&weights.global().embedding, &weights.global().head};
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    for (const Matrix* each : matrices_of(weights.layer(layer))) {
      if (each->given()) all.push_back(each);
    }
  }
  return all;
}

std::size_t padded_bytes(const Vector& vector) {
  const std::size_t bytes = vector.values.size() * sizeof(float);
  return (bytes + kSmallAlign - 1) / kSmallAlign * kSmallAlign;
}

std::size_t longest_matrix(const ModelConfig& config, const cpu::Weights& weights) {
  std::size_t longest = 1;
  for (const Matrix* each : all_matrices(config, weights)) {
    longest = std::max(longest, longest_array(each->type, each->cols, each->rows));
  }
  return longest;
}

// Puts small tensors one behind the other.
class SmallTensors {
 public:
  explicit SmallTensors(const Buffer& buffer) : buffer_(buffer) {}

  Place put(const Vector& vector) {
    if (!vector.given()) return {};
    const std::size_t offset = offset_;
    std::memcpy(buffer_.contents() + offset, vector.data(), vector.values.size() * sizeof(float));
    offset_ += padded_bytes(vector);
    return {&buffer_, offset};
  }

 private:
  const Buffer& buffer_;
  std::size_t offset_ = 0;
};

std::size_t small_bytes(const ModelConfig& config, const cpu::Weights& weights) {
  std::size_t bytes = padded_bytes(weights.global().final_norm);
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    for (const Vector* each : vectors_of(weights.layer(layer))) bytes += padded_bytes(*each);
  }
  return bytes;
}

void check_readable(TensorType type, std::size_t cols, std::uintptr_t address) {
  const std::size_t values = type == TensorType::F32 ? 4 : type == TensorType::F16 || type == TensorType::BF16 ? 8 : 1;
  const std::string name(cpu::traits_of(type).name);
  if (cols % values != 0) {
    throw GpuError(kModelUnsupported,
                   "the Metal kernels read " + name + " rows in steps of " + std::to_string(values) + " values, not " +
                       std::to_string(cols));
  }
  if (address % alignment_of(type) != 0) {
    throw GpuError(kModelUnsupported, "the Metal kernels read " + name + " from multiples of " +
                                          std::to_string(alignment_of(type)) + " bytes, this file has it elsewhere");
  }
}

}  // namespace

std::size_t alignment_of(TensorType type) {
  switch (type) {
    case TensorType::F16:
    case TensorType::BF16: return 16;
    case TensorType::Q4_K:
    case TensorType::Q5_K:
    case TensorType::IQ4_XS: return 8;
    case TensorType::F32: return 4;
    case TensorType::MXFP4: return 1;
    default: return cpu::is_affine(type) ? 1 : 2;
  }
}

std::size_t longest_array(TensorType type, std::size_t cols, std::size_t rows) {
  // Scales and biases have 2 bytes for at least 32 values, whose codes have at least 8.
  return rows * cpu::row_bytes(type, cols);
}

GpuMatrix gpu_matrix(const MappedMemory& memory, const Matrix& matrix) {
  if (!matrix.given()) return {};
  check_readable(matrix.type, matrix.cols, reinterpret_cast<std::uintptr_t>(matrix.data));
  GpuMatrix found{.type = matrix.type,
                  .cols = static_cast<std::uint32_t>(matrix.cols),
                  .rows = static_cast<std::uint32_t>(matrix.rows),
                  .place = memory.find(matrix.data, bytes_of(matrix)),
                  .scales = {},
                  .biases = {}};
  if (cpu::is_affine(matrix.type)) {
    found.scales = memory.find(matrix.scales, side_bytes_of(matrix));
    found.biases = memory.find(matrix.biases, side_bytes_of(matrix));
  }
  return found;
}

GpuWeights::GpuWeights(const Device& device, const ModelConfig& config, const cpu::Weights& weights)
    : matrices_(device, longest_matrix(config, weights)), small_(device.buffer(small_bytes(config, weights))) {
  const cpu::GlobalWeights& global = weights.global();
  for (const Matrix* each : all_matrices(config, weights)) {
    matrices_.add(each->data, bytes_of(*each));
    matrices_.add(each->scales, side_bytes_of(*each));
    matrices_.add(each->biases, side_bytes_of(*each));
  }
  matrices_.map();
  const auto matrix = [this](const Matrix& from) { return gpu_matrix(matrices_, from); };

  SmallTensors small(small_);
  embedding_ = matrix(global.embedding);
  head_ = matrix(global.head);
  final_norm_ = small.put(global.final_norm);
  const auto hidden = static_cast<std::uint32_t>(config.hidden);
  for (std::size_t index = 0; index < config.layers; ++index) {
    const LayerWeights& from = weights.layer(index);
    layers_.push_back(GpuLayer{
        .mixer_norm = small.put(from.mixer_norm),
        .moe_norm = small.put(from.moe_norm),
        .query = matrix(from.query),
        .key = matrix(from.key),
        .value = matrix(from.value),
        .attention_out = matrix(from.attention_out),
        .query_norm = small.put(from.query_norm),
        .key_norm = small.put(from.key_norm),
        .conv_in = matrix(from.conv_in),
        .delta_gate = matrix(from.delta_gate),
        .beta = matrix(from.beta),
        .alpha = matrix(from.alpha),
        .beta_alpha = matrix(from.beta_alpha),
        .delta_out = matrix(from.delta_out),
        .conv = small.put(from.conv),
        .decay_rate = small.put(from.decay_rate),
        .decay_bias = small.put(from.decay_bias),
        .delta_norm = small.put(from.delta_norm),
        .router = matrix(from.router),
        .shared_gate = matrix(from.shared_gate),
        .shared_up = matrix(from.shared_up),
        .shared_down = matrix(from.shared_down),
        .shared_mix = {TensorType::F32, hidden, 1, small.put(from.shared_mix), {}, {}},
    });
  }
}

std::vector<const Buffer*> GpuWeights::buffers() const {
  std::vector<const Buffer*> all = {&small_};
  for (const Buffer& each : matrices_.buffers()) all.push_back(&each);
  return all;
}

}  // namespace moestream::metal
