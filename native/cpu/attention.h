// Full attention: queries and keys normed per head and rotated, a KV cache, grouped heads, and where the
// architecture has it a sigmoid gate on the output.
//
// A (row, head) pair is one unit of work and walks its positions in rising order: scores, maximum, exponentials, sum,
// weighted values. It never sees how many rows the step has, so a prefill gives the bits of single decode steps.
#pragma once

#include "step.h"
#include "weights.h"

namespace moestream::cpu {

// Reads `normed`, writes `mixed`, appends the step's keys and values to the cache of `layer`.
void run_attention(const Step& step, const LayerWeights& weights, std::size_t layer);

}  // namespace moestream::cpu
