// The routers alone, asked before their time: which experts would a layer choose for a residual stream of an earlier one?
//
// Norm, router product and the k largest scores, for one row, on the calling thread. It borrows the router matrices where
// they lie and shares nothing with the backend, so the predictor's thread may use it while the backend computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "matmul.h"
#include "operands.h"
#include "thread_pool.h"
#include "vector_kernels.h"

namespace moestream::cpu {

class RouterProbe {
 public:
  // Throws std::invalid_argument for empty shapes.
  RouterProbe(std::size_t layers, std::size_t hidden, std::size_t experts, float epsilon);

  // The norm before the experts and the router of one layer. Throws std::invalid_argument for other shapes.
  void set_layer(std::size_t layer, std::span<const float> norm, const Matrix& router);

  // Fills `ids` with the experts of the largest scores, largest first; the lower index wins a tie. Scores that are no
  // numbers rank last. Throws std::invalid_argument when the layer is not set or the sizes do not fit.
  void probe(std::size_t layer, std::span<const float> stream, std::span<std::int32_t> ids);

 private:
  struct Layer {
    std::vector<float> norm;  // (hidden)
    Matrix router;            // (experts, hidden)
  };

  const std::size_t hidden_;
  const std::size_t experts_;
  const float epsilon_;
  std::vector<Layer> layers_;
  std::vector<float> normed_;   // (hidden)
  std::vector<float> scores_;   // (experts)
  std::vector<float> buffers_;  // see Multiplier
  ThreadPool pool_{1, 0};
  Multiplier multiplier_;
};

}  // namespace moestream::cpu
