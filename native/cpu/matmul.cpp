// The exact products of matmul.h: dequantise kBlockRows rows, then dot each with every input row, two at a time.
#include "matmul.h"

#include <algorithm>

#include "elementary.h"
#include "moestream/invariant.h"
#include "row_reader.h"

namespace moestream::cpu {
namespace {

// Calls store(t, value) with the dot product of one weight row and every input row of the map.
template <class Store>
void dot_with_inputs(const VectorKernels& kernels, const float* weights, const Activations& input,
                     std::span<const std::uint32_t> from, const Store& store) {
  std::size_t t = 0;
  for (; t + 2 <= from.size(); t += 2) {
    float first;
    float second;
    kernels.dot_pair(weights, input.row(from[t]), input.row(from[t + 1]), input.cols(), &first, &second);
    store(t, first);
    store(t + 1, second);
  }
  if (t < from.size()) store(t, kernels.dot(weights, input.row(from[t]), input.cols()));
}

void check(const Activations& input, const RowMap& map, const Matrix& matrix, std::size_t max_cols) {
  invariant(matrix.given(), "a product has a matrix");
  invariant(matrix.cols == input.cols() && matrix.cols <= max_cols, "a product's input is as wide as its matrix");
  invariant(map.from.size() == map.to.size(), "every input row has its output row");
}

// Work of one weight row: unpacking it costs about as much as four dot products.
std::size_t row_operations(std::size_t cols, std::size_t inputs) { return cols * (inputs + 4) / 4; }

}  // namespace

Multiplier::Multiplier(ThreadPool& pool, std::span<float> buffers, std::size_t max_cols)
    : pool_(pool), kernels_(vector_kernels()), buffers_(buffers), max_cols_(max_cols) {
  invariant(buffers.size() == buffer_floats(pool.threads(), max_cols), "every thread has its row buffer");
}

Multiplier::Multiplier(const FastMultiplier& fast, ThreadPool& pool)
    : pool_(pool), kernels_(vector_kernels()), fast_(fast) {}

float* Multiplier::buffer_of(std::size_t thread) const { return buffers_.data() + thread * kBlockRows * max_cols_; }

void Multiplier::multiply(const Activations& input, const RowMap& map, std::span<const Product> products) const {
  if (fast_) return fast_->multiply(input, map, products);
  std::size_t total_rows = 0;
  for (const Product& each : products) {
    check(input, map, each.matrix, max_cols_);
    total_rows += each.matrix.rows;
  }
  const std::size_t grain = grain_of(row_operations(input.cols(), map.from.size()));
  pool_.run(total_rows, grain, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    float* const buffer = buffer_of(thread);
    std::size_t first_of_product = 0;
    for (const Product& each : products) {
      const std::size_t rows = each.matrix.rows;
      const std::size_t from = std::max(begin, first_of_product);
      const std::size_t to = std::min(end, first_of_product + rows);
      const RowReader reader(each.matrix);
      for (std::size_t block = from; block < to; block += kBlockRows) {
        const std::size_t count = std::min(kBlockRows, to - block);
        const std::size_t row = block - first_of_product;
        reader.read(row, count, buffer);
        for (std::size_t r = 0; r < count; ++r) {
          dot_with_inputs(kernels_, buffer + r * input.cols(), input, map.from, [&](std::size_t t, float value) {
            each.output[map.to[t] * rows + row + r] = value;
          });
        }
      }
      first_of_product += rows;
    }
  });
}

void Multiplier::multiply_gated(const Activations& input, const RowMap& map, const Matrix& gate, const Matrix& up,
                                float* output) const {
  if (fast_) return fast_->multiply_gated(input, map, gate, up, output);
  check(input, map, gate, max_cols_);
  check(input, map, up, max_cols_);
  invariant(gate.rows == up.rows, "gate and up have the same rows");
  const RowReader gate_reader(gate);
  const RowReader up_reader(up);
  const std::size_t width = gate.rows;
  const std::size_t grain = grain_of(2 * row_operations(input.cols(), map.from.size()));
  pool_.run(width, grain, [&](std::size_t begin, std::size_t end, std::size_t thread) {
    float* const buffer = buffer_of(thread);
    for (std::size_t r = begin; r < end; ++r) {
      gate_reader.read(r, buffer);
      dot_with_inputs(kernels_, buffer, input, map.from,
                      [&](std::size_t t, float value) { output[map.to[t] * width + r] = silu(value); });
      up_reader.read(r, buffer);
      dot_with_inputs(kernels_, buffer, input, map.from,
                      [&](std::size_t t, float value) { output[map.to[t] * width + r] *= value; });
    }
  });
}

}  // namespace moestream::cpu
