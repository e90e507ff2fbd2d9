// The buffers that a step computes in.
//
// One layout, computed from the configuration, is what `footprint` counts and what the backend allocates. Most of it
// grows with maxRows: for 397B parameters about 450 KB per row, of which the routed experts' outputs are 164 KB. Each
// (row, choice) has an output of its own, so experts may finish in any order and still be summed in the router's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"
#include "model_config.h"

namespace moestream::cpu {

struct ScratchLayout {
  explicit ScratchLayout(const ModelConfig& config);

  Layout layout;
  Slice<float> stream;              // (maxRows, hidden), the residual stream
  Slice<float> normed;              // (maxRows, hidden), what the mixer, the experts or the LM head read
  Slice<float> mixed;               // (maxRows, hidden), what the mixer adds
  Slice<std::uint32_t> all_rows;    // (maxRows): 0, 1, 2, ...
  Slice<float> weight_rows;         // (threads, kBlockRows, maxCols), see Multiplier; precision exact
  Slice<std::byte> prepared;        // inputs in 8 bits, see FastMultiplier; precision fast

  Slice<float> query;               // (maxRows, queryWidth), with gates
  Slice<float> key;                 // (maxRows, kvWidth)
  Slice<float> value;               // (maxRows, kvWidth)
  Slice<float> attended;            // (maxRows, attendedWidth)
  Slice<float> scores;              // (threads, contextLength)
  Slice<float> rotations;           // (maxRows, rotaryDims)

  Slice<float> conv;                // (maxRows, convChannels): queries, keys, values
  Slice<float> delta_gate;          // (maxRows, deltaValueWidth)
  Slice<float> beta_alpha;          // (maxRows, 2 * deltaValueHeads) as one matrix, or two (maxRows, deltaValueHeads)
  Slice<float> delta_output;        // (maxRows, deltaValueWidth)
  Slice<float> delta_vectors;       // (threads, 3, deltaHeadDim)

  Slice<float> router;              // (maxRows, experts)
  Slice<std::int32_t> route_ids;    // (maxRows, expertsPerToken)
  Slice<float> route_weights;       // (maxRows, expertsPerToken)
  Slice<std::uint8_t> route_done;   // (maxRows, expertsPerToken)
  Slice<std::uint32_t> chosen_rows; // (maxRows), the rows of one expert
  Slice<std::uint32_t> chosen_slots;// (maxRows), their (row, choice) in `routed`
  Slice<float> expert_inner;        // (maxRows, expertWidth)
  Slice<float> routed;              // (maxRows, expertsPerToken, hidden)
  Slice<float> shared_inner;        // (maxRows, sharedWidth)
  Slice<float> shared_output;       // (maxRows, hidden), empty without a shared expert
  Slice<float> shared_gate;         // (maxRows)
};

class Scratch {
 public:
  explicit Scratch(const ModelConfig& config) : plan(config), memory_(plan.layout.bytes()) {}

  template <class Value>
  Value* at(Slice<Value> slice) const {
    return memory_.at(slice).data();
  }

  template <class Value>
  std::span<Value> all(Slice<Value> slice) const {
    return memory_.at(slice);
  }

  const ScratchLayout plan;

 private:
  Memory memory_;
};

}  // namespace moestream::cpu
