// Exact float32 products, as the backend's routers in precision `exact`: a guess needs no less, and one core does a router
// of 512 x 4096 in under a millisecond.
#include "router_probe.h"

#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "norm.h"

namespace moestream::cpu {

RouterProbe::RouterProbe(std::size_t layers, std::size_t hidden, std::size_t experts, float epsilon)
    : hidden_(hidden),
      experts_(experts),
      epsilon_(epsilon),
      layers_(layers),
      normed_(hidden),
      scores_(experts),
      buffers_(Multiplier::buffer_floats(1, hidden)),
      multiplier_(pool_, buffers_, hidden) {
  if (layers == 0 || hidden == 0 || experts == 0) throw std::invalid_argument("a router probe of nothing");
}

void RouterProbe::set_layer(std::size_t layer, std::span<const float> norm, const Matrix& router) {
  if (layer >= layers_.size() || norm.size() != hidden_ || router.cols != hidden_ || router.rows != experts_) {
    throw std::invalid_argument("a router of another shape");
  }
  layers_[layer] = {{norm.begin(), norm.end()}, router};
}

void RouterProbe::probe(std::size_t layer, std::span<const float> stream, std::span<std::int32_t> ids) {
  if (layer >= layers_.size() || !layers_[layer].router.given()) throw std::invalid_argument("no router of this layer");
  if (stream.size() != hidden_ || ids.size() > experts_) throw std::invalid_argument("a probe of another shape");
  const Layer& weights = layers_[layer];
  rms_norm(vector_kernels(), stream.data(), weights.norm.data(), epsilon_, hidden_, normed_.data());
  constexpr std::array<std::uint32_t, 1> kRow{0};
  const std::array<Product, 1> product{{{weights.router, scores_.data()}}};
  multiplier_.multiply(Activations(normed_, hidden_), {kRow, kRow}, product);
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  std::vector<bool> taken(experts_);
  for (std::int32_t& id : ids) {
    std::size_t best = experts_;
    for (std::size_t e = 0; e < experts_; ++e) {
      if (std::isnan(scores_[e])) scores_[e] = kLowest;
      if (!taken[e] && (best == experts_ || scores_[e] > scores_[best])) best = e;
    }
    taken[best] = true;
    id = static_cast<std::int32_t>(best);
  }
}

}  // namespace moestream::cpu
