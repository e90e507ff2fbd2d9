// Matrix products with quantised weights.
//
// The value of output[t][r] depends on matrix row r and input row t alone: never on how many rows stand together, on
// the number of threads or on how the work is cut. That makes a prefill chunk equal to single decode steps, bit for
// bit. A weight row is dequantised once into a buffer of its thread and used for all input rows, so a prefill of many
// rows costs little more than arithmetic; a single row costs one pass over the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "fast/fast_multiplier.h"
#include "operands.h"
#include "thread_pool.h"
#include "vector_kernels.h"

namespace moestream::cpu {

class Multiplier {
 public:
  // Weight rows that one thread dequantises before it uses them: they and one input row fit a 256 KB cache.
  static constexpr std::size_t kBlockRows = 4;

  static std::size_t buffer_floats(std::size_t threads, std::size_t max_cols) {
    return threads * kBlockRows * max_cols;
  }

  // Precision `exact`; `buffers` is (threads, kBlockRows, max_cols).
  Multiplier(ThreadPool& pool, std::span<float> buffers, std::size_t max_cols);
  // Precision `fast`.
  explicit Multiplier(const FastMultiplier& fast, ThreadPool& pool);

  // Several products of one input, shared out as one range: output[to[t]][r] = row r . input[from[t]].
  void multiply(const Activations& input, const RowMap& map, std::span<const Product> products) const;

  // The inside of a gated feed-forward: output[to[t]][r] = silu(gate row r . x) * (up row r . x), x = input[from[t]].
  void multiply_gated(const Activations& input, const RowMap& map, const Matrix& gate, const Matrix& up,
                      float* output) const;

 private:
  float* buffer_of(std::size_t thread) const;

  ThreadPool& pool_;
  const VectorKernels& kernels_;
  std::span<float> buffers_;
  std::size_t max_cols_ = 0;
  std::optional<FastMultiplier> fast_;
};

}  // namespace moestream::cpu
