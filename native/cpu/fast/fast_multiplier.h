// The products of precision `fast`: inputs are rounded to 8 bits, rows of all matrices are shared out as one range.
//
// Work goes to kernels in tiles of at most 16 rows and 32 inputs. Which tile an output is in never shows in its bits
// (products.h), so neither does the number of threads or of inputs.
#pragma once

#include <cstddef>
#include <span>

#include "../operands.h"
#include "../thread_pool.h"
#include "products.h"

namespace moestream::cpu {

class FastMultiplier {
 public:
  static std::size_t buffer_bytes(std::size_t max_inputs, std::size_t max_cols) {
    return kPreparedForms * max_inputs * prepared_bytes(max_cols);
  }

  // `buffer` is buffer_bytes(maxInputs, maxCols) on a cache line.
  FastMultiplier(ThreadPool& pool, std::span<std::byte> buffer, const ProductKernels& kernels);

  // As in Multiplier.
  void multiply(const Activations& input, const RowMap& map, std::span<const Product> products) const;
  void multiply_gated(const Activations& input, const RowMap& map, const Matrix& gate, const Matrix& up,
                      float* output) const;

 private:
  struct Prepared;

  Prepared prepare(const Activations& input, const RowMap& map, std::span<const TensorType> types) const;

  ThreadPool& pool_;
  std::span<std::byte> buffer_;  // (forms, inputs, prepared bytes), as many inputs as a product has
  const ProductKernels& kernels_;
};

}  // namespace moestream::cpu
