// Floats to the blocks of a type, for rewriting a model's experts in fewer bits.
//
// Every choice here is made for the least squared error of the block itself, without statistics of activations: a scale is
// tried at several sizes, the codes that it gives are fitted again by least squares, and the best fit wins. What is written
// are valid blocks of the published formats; other programs may round otherwise.
#pragma once

#include <cstdint>
#include <span>

#include "tensor_type.h"

namespace moestream::cpu {

// Whether `quantize` writes this type: Q8_0, Q4_0, Q4_K, IQ4_NL and the affine types.
bool can_quantize(TensorType type);

// `values` are whole blocks. Of an affine type all codes stand first in `blocks`, then all scales, then all biases. Values
// must be finite.
void quantize(TensorType type, std::span<const float> values, std::span<std::uint8_t> blocks);

}  // namespace moestream::cpu
