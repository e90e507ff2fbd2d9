// Selection takes k passes over the probabilities: for 10 of 512 that is less work than any of the heaps that avoid it.
#include "router.h"

#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "elementary.h"

namespace moestream::cpu {
namespace {

// scores (count) become probabilities.
void softmax(float* scores, std::size_t count) {
  float maximum = scores[0];
  for (std::size_t e = 1; e < count; ++e) maximum = scores[e] > maximum ? scores[e] : maximum;
  float sum = 0;
  for (std::size_t e = 0; e < count; ++e) {
    scores[e] = exp_float(scores[e] - maximum);
    sum += scores[e];
  }
  for (std::size_t e = 0; e < count; ++e) scores[e] /= sum;
}

std::size_t index_of_largest(const float* probabilities, std::size_t count) {
  std::size_t best = 0;
  for (std::size_t e = 1; e < count; ++e) {
    if (probabilities[e] > probabilities[best]) best = e;
  }
  return best;
}

void route_row(const ModelConfig& config, float* scores, std::int32_t* ids, float* weights) {
  softmax(scores, config.experts);
  float sum = 0;
  for (std::size_t k = 0; k < config.experts_per_token; ++k) {
    const std::size_t best = index_of_largest(scores, config.experts);
    ids[k] = static_cast<std::int32_t>(best);
    weights[k] = scores[best];
    sum += scores[best];
    scores[best] = -1.0f;  // below any probability: not chosen again
  }
  for (std::size_t k = 0; k < config.experts_per_token; ++k) weights[k] /= sum;
}

}  // namespace

void run_router(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  const ScratchLayout& plan = step.plan();
  float* const scores = step.scratch.at(plan.router);
  float* const route_weights = step.scratch.at(plan.route_weights);
  std::int32_t* const route_ids = step.scratch.at(plan.route_ids);
  const std::size_t choices = config.experts_per_token;

  const std::array<Product, 1> product{{{weights.router, scores}}};
  step.multiplier.multiply(step.input(plan.normed, config.hidden), step.every_row(), product);
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t r = begin; r < end; ++r) {
      route_row(config, scores + r * config.experts, route_ids + r * choices, route_weights + r * choices);
    }
  };
  step.pool.run(step.row_count(), grain_of(config.experts * (choices + 20)), work);
  for (std::size_t i = 0; i < step.row_count() * choices; ++i) {
    if (!std::isfinite(route_weights[i])) {
      throw std::runtime_error("the router of layer " + std::to_string(layer) + " gives no number for row " +
                               std::to_string(i / choices) + " of this step");
    }
  }
}

}  // namespace moestream::cpu
