// Gated DeltaNet: a short causal convolution, then per value head a state matrix that is decayed, corrected towards the
// token's value and read by its query.
//
// The recurrence is computed token by token, in order, for prefill too: it is what decoding computes, so a chunk has
// the bits of single steps. Heads are independent, and are the units of parallel work: a 128 x 128 state is 64 KB and
// stays in its core's cache for all rows of a run.
#pragma once

#include "step.h"
#include "weights.h"

namespace moestream::cpu {

// Reads `normed`, writes `mixed`, advances the state of `layer` in every sequence of the batch.
void run_delta_net(const Step& step, const LayerWeights& weights, std::size_t layer);

}  // namespace moestream::cpu
