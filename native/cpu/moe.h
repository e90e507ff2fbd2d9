// The mixture of experts, in pieces that may run while other experts are still being read.
//
// Every (row, choice) writes an output of its own and the sum runs in the router's order at the end, so the order in
// which experts arrive from the disk never shows in the result. An output is marked when it is written: the sum refuses
// to run while one is missing, which makes a skipped expert impossible rather than unlikely.
#pragma once

#include <cstddef>
#include <span>

#include "step.h"
#include "weights.h"

namespace moestream::cpu {

// Raw blocks of one routed expert.
struct ExpertWeights {
  Matrix gate;  // (expertWidth, hidden)
  Matrix up;    // (expertWidth, hidden)
  Matrix down;  // (hidden, expertWidth)
};

// Forgets which outputs are written.
void begin_experts(const Step& step);

// Computes one expert for all rows that chose it. Throws std::logic_error when none did or when it has already run.
void run_expert(const Step& step, const ExpertWeights& weights, std::size_t expert);

// The shared expert and the gate of its output, for all rows.
void run_shared_expert(const Step& step, const LayerWeights& weights);

// A row's residual stream and, on top of it, what is there already of what this layer will add: for predictors.
void copy_grown_stream(const Step& step, std::size_t row, bool shared_done, std::span<float> into);

// Adds the weighted sum of the routed experts and the gated shared expert to `stream`. Throws std::logic_error naming
// an expert whose output is missing.
void combine_experts(const Step& step);

}  // namespace moestream::cpu
