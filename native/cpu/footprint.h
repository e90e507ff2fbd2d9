// What a backend of a configuration takes, counted with the layouts that allocate it.
#pragma once

#include <cstddef>

#include "model_config.h"

namespace moestream::cpu {

struct Footprint {
  std::size_t kv_bytes;
  std::size_t state_bytes;
  std::size_t scratch_bytes;  // step buffers and the small tensors kept as float32
};

// Throws std::invalid_argument or std::length_error for a configuration that cannot be.
Footprint footprint(const ModelConfig& config);

}  // namespace moestream::cpu
