// The tiling of fast_multiplier.h. The inner part of a tile, rows times inputs, is a kernel's.
#include "fast_multiplier.h"

#include <algorithm>
#include <array>

#include "moestream/invariant.h"

namespace moestream::cpu {
namespace {

// Kernels take rows four at a time when there is one input, so parts are whole fours.
constexpr std::size_t kGroupRows = 4;

std::size_t groups_of(std::size_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }

// Work of four rows in the unit of grain_of: decoding 256 weights takes about 10 ns, an input with them 2 ns.
std::size_t group_operations(std::size_t cols, std::size_t inputs) { return kGroupRows * cols * (inputs + 5) / 32; }

}  // namespace

// The inputs of one call in every form that its matrices need.
struct FastMultiplier::Prepared {
  const Activations& input;
  const RowMap& map;
  std::array<const std::byte*, 1 + kPreparedForms> forms{};
  std::size_t input_bytes = 0;

  const void* at(InputForm form, std::size_t t) const {
    if (form == InputForm::kFloats) return input.row(map.from[t]);
    return forms[static_cast<std::size_t>(form)] + t * input_bytes;
  }
};

namespace {

// One matrix' kernel and the buffer that its tiles go through.
template <class Prepared>
class TileRunner {
 public:
  TileRunner(const ProductKernels& kernels, const Matrix& matrix, const Prepared& prepared)
      : matrix_(matrix),
        kernel_(kernels.kernel_of(matrix.type)),
        row_bytes_(row_bytes(matrix.type, matrix.cols)),
        side_row_bytes_(side_row_bytes(matrix.type, matrix.cols)),
        prepared_(prepared) {}

  // (inputs, rows) floats for `inputs` inputs from `input` and `rows` rows from `row`.
  void run(std::size_t row, std::size_t rows, std::size_t input, std::size_t inputs, float* out) const {
    const void* pointers[kTileInputs];
    for (std::size_t t = 0; t < inputs; ++t) pointers[t] = prepared_.at(kernel_.form, input + t);
    kernel_.multiply(Tile{
        .weights = matrix_.data + row * row_bytes_,
        .scales = matrix_.scales + row * side_row_bytes_,
        .biases = matrix_.biases + row * side_row_bytes_,
        .row_bytes = row_bytes_,
        .side_row_bytes = side_row_bytes_,
        .rows = rows,
        .cols = matrix_.cols,
        .inputs = pointers,
        .input_count = inputs,
        .out = out,
    });
  }

 private:
  const Matrix& matrix_;
  TypeKernel kernel_;
  std::size_t row_bytes_;
  std::size_t side_row_bytes_;
  const Prepared& prepared_;
};

// Calls work(row, rows, input, inputs) for every tile of rows [begin, end).
template <class Work>
void for_each_tile(std::size_t begin, std::size_t end, std::size_t input_count, const Work& work) {
  for (std::size_t row = begin; row < end; row += kTileRows) {
    const std::size_t rows = std::min(kTileRows, end - row);
    for (std::size_t input = 0; input < input_count; input += kTileInputs) {
      work(row, rows, input, std::min(kTileInputs, input_count - input));
    }
  }
}

}  // namespace

FastMultiplier::FastMultiplier(ThreadPool& pool, std::span<std::byte> buffer, const ProductKernels& kernels)
    : pool_(pool), buffer_(buffer), kernels_(kernels) {}

FastMultiplier::Prepared FastMultiplier::prepare(const Activations& input, const RowMap& map,
                                                 std::span<const TensorType> types) const {
  const std::size_t count = map.from.size();
  const std::size_t cols = input.cols();
  invariant(map.to.size() == count, "every input row has its output row");
  invariant(buffer_bytes(count, cols) <= buffer_.size(), "prepared inputs fit their buffer");
  Prepared prepared{.input = input, .map = map, .input_bytes = prepared_bytes(cols)};
  for (const TensorType type : types) {
    const InputForm form = kernels_.kernel_of(type).form;
    const std::size_t index = static_cast<std::size_t>(form);
    if (form == InputForm::kFloats || prepared.forms[index] != nullptr) continue;
    std::byte* const into = buffer_.data() + (index - 1) * count * prepared.input_bytes;
    pool_.run(count, grain_of(cols / 2), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t t = begin; t < end; ++t) {
        kernels_.prepare(form, input.row(map.from[t]), cols, into + t * prepared.input_bytes);
      }
    });
    prepared.forms[index] = into;
  }
  return prepared;
}

void FastMultiplier::multiply(const Activations& input, const RowMap& map, std::span<const Product> products) const {
  constexpr std::size_t kMaxProducts = 4;
  std::array<TensorType, kMaxProducts> types{};
  invariant(products.size() <= kMaxProducts, "a call has at most four products");
  std::size_t total_groups = 0;
  for (std::size_t p = 0; p < products.size(); ++p) {
    invariant(products[p].matrix.given() && products[p].matrix.cols == input.cols(), "an input fits its matrix");
    types[p] = products[p].matrix.type;
    total_groups += groups_of(products[p].matrix.rows);
  }
  const Prepared prepared = prepare(input, map, std::span(types).first(products.size()));
  const std::size_t inputs = map.from.size();
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t) {
    std::size_t first_group = 0;
    for (const Product& each : products) {
      const std::size_t all = each.matrix.rows;
      const std::size_t from = std::max(begin, first_group) - first_group;
      const std::size_t to = std::min(std::max(end, first_group) - first_group, groups_of(all));
      const TileRunner runner(kernels_, each.matrix, prepared);
      for_each_tile(from * kGroupRows, std::min(to * kGroupRows, all), inputs,
                    [&](std::size_t row, std::size_t rows, std::size_t t, std::size_t count) {
                      float tile[kTileInputs * kTileRows];
                      runner.run(row, rows, t, count, tile);
                      for (std::size_t i = 0; i < count; ++i) {
                        std::copy_n(tile + i * rows, rows, each.output + map.to[t + i] * all + row);
                      }
                    });
      first_group += groups_of(all);
    }
  };
  pool_.run(total_groups, grain_of(group_operations(input.cols(), inputs)), work);
}

void FastMultiplier::multiply_gated(const Activations& input, const RowMap& map, const Matrix& gate, const Matrix& up,
                                    float* output) const {
  invariant(gate.given() && gate.cols == input.cols(), "an input fits its matrix");
  invariant(up.given() && up.cols == gate.cols && up.rows == gate.rows, "gate and up have the same shape");
  const Prepared prepared = prepare(input, map, std::array{gate.type, up.type});
  const std::size_t inputs = map.from.size();
  const std::size_t width = gate.rows;
  const TileRunner gate_runner(kernels_, gate, prepared);
  const TileRunner up_runner(kernels_, up, prepared);
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t) {
    for_each_tile(begin * kGroupRows, std::min(end * kGroupRows, width), inputs,
                  [&](std::size_t row, std::size_t rows, std::size_t t, std::size_t count) {
                    float gates[kTileInputs * kTileRows];
                    float ups[kTileInputs * kTileRows];
                    gate_runner.run(row, rows, t, count, gates);
                    up_runner.run(row, rows, t, count, ups);
                    kernels_.gate(gates, ups, count * rows);
                    for (std::size_t i = 0; i < count; ++i) {
                      std::copy_n(gates + i * rows, rows, output + map.to[t + i] * width + row);
                    }
                  });
  };
  pool_.run(groups_of(width), grain_of(2 * group_operations(input.cols(), inputs)), work);
}

}  // namespace moestream::cpu
