// Looking up experts' matrices, with the bounds that keep a wrong place from becoming a wrong read.
#include "expert_places.h"

#include <stdexcept>
#include <string>

namespace moestream::cpu {
namespace {

const std::uint8_t* bytes_at(std::span<const std::uint8_t> memory, std::size_t first, std::size_t count) {
  if (first <= memory.size() && count <= memory.size() - first) return memory.data() + first;
  throw std::logic_error("an expert at byte " + std::to_string(first) + " reaches beyond its slab segment");
}

}  // namespace

Matrix slab_matrix(std::span<const std::span<const std::uint8_t>> segments, std::size_t segment, const MatrixPlace& place,
                   TensorType type, std::size_t cols, std::size_t rows) {
  if (segment >= segments.size()) throw std::logic_error("slab segment " + std::to_string(segment) + " is not bound");
  const std::span<const std::uint8_t> memory = segments[segment];
  Matrix matrix{type, cols, rows, bytes_at(memory, place.data, rows * row_bytes(type, cols))};
  if (!is_affine(type)) return matrix;
  if (!place.apart) throw std::logic_error("an expert of an affine type comes without the places of its scales and biases");
  const std::size_t bytes = rows * side_row_bytes(type, cols);
  matrix.scales = bytes_at(memory, place.scales, bytes);
  matrix.biases = bytes_at(memory, place.biases, bytes);
  return matrix;
}

}  // namespace moestream::cpu
