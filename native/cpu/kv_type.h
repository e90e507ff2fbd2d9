// How keys and values are kept: as the float32 numbers they are, as half floats, or as blocks of 32 numbers of 8 bits
// that share a half float, laid out as the file format lays out tensors of these types.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor_type.h"

namespace moestream::cpu {

enum class KvType : std::uint32_t {
  kF32 = static_cast<std::uint32_t>(TensorType::F32),
  kF16 = static_cast<std::uint32_t>(TensorType::F16),
  kQ8_0 = static_cast<std::uint32_t>(TensorType::Q8_0),
};

inline TensorType tensor_type_of(KvType type) { return static_cast<TensorType>(type); }

}  // namespace moestream::cpu
