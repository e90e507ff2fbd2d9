// Matrix products with quantised weights.
//
// The value of output[t][r] depends on matrix row r and input row t alone: never on how many rows stand together, on
// the number of threads or on how the work is cut. That makes a prefill chunk equal to single decode steps, bit for
// bit. A weight row is dequantised once into a buffer of its thread and used for all input rows, so a prefill of many
// rows costs little more than arithmetic; a single row costs one pass over the weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor_type.h"
#include "thread_pool.h"
#include "vector_kernels.h"

namespace moestream::cpu {

// Borrowed bytes of a model file: `rows` rows of `cols` values, each a whole number of blocks, at any address.
struct Matrix {
  TensorType type = TensorType::F32;
  std::size_t cols = 0;
  std::size_t rows = 0;
  const std::uint8_t* data = nullptr;

  bool given() const { return data != nullptr; }
};

// The input of products, in the form that the precision's kernels read. It is prepared once and read by every product
// with this input; in exact precision that form is the float rows themselves.
class Activations {
 public:
  Activations(std::span<const float> values, std::size_t cols) : values_(values), cols_(cols) {}

  const float* row(std::size_t index) const { return values_.data() + index * cols_; }
  std::size_t rows() const { return values_.size() / cols_; }
  std::size_t cols() const { return cols_; }

 private:
  std::span<const float> values_;  // (rows, cols)
  std::size_t cols_;
};

// Which rows of an input, and where their results go: result t of input row from[t] is row to[t] of the output.
struct RowMap {
  std::span<const std::uint32_t> from;
  std::span<const std::uint32_t> to;
};

struct Product {
  Matrix matrix;
  float* output;  // (output rows, matrix.rows)
};

class Multiplier {
 public:
  // Weight rows that one thread dequantises before it uses them: they and one input row fit a 256 KB cache.
  static constexpr std::size_t kBlockRows = 4;

  static std::size_t buffer_floats(std::size_t threads, std::size_t max_cols) {
    return threads * kBlockRows * max_cols;
  }

  // `buffers` is (threads, kBlockRows, max_cols).
  Multiplier(ThreadPool& pool, std::span<float> buffers, std::size_t max_cols);

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
  std::size_t max_cols_;
};

}  // namespace moestream::cpu
