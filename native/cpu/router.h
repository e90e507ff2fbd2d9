// The router: which experts a token goes to, and with what weight.
//
// Softmax over all experts in float32, then the k most probable in falling order (the lower index wins a tie), their
// probabilities divided by their sum. The order is part of the result: experts' outputs are later summed in it.
#pragma once

#include "step.h"
#include "weights.h"

namespace moestream::cpu {

// Reads `normed`, writes `route_ids` and `route_weights` for every row. Throws std::runtime_error when a row's scores
// are not numbers: nothing sensible can be computed from there on.
void run_router(const Step& step, const LayerWeights& weights, std::size_t layer);

}  // namespace moestream::cpu
