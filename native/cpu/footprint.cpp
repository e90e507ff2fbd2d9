// The sum of footprint.h.
#include "footprint.h"

#include "scratch.h"
#include "sequence_state.h"
#include "weights.h"

namespace moestream::cpu {

Footprint footprint(const ModelConfig& config) {
  config.validate();
  return {SequenceStore::kv_bytes(config), SequenceStore::state_bytes(config),
          ScratchLayout(config).layout.bytes() + Weights::kept_bytes(config)};
}

}  // namespace moestream::cpu
