// The four stages of attention.h: projections, keys and values into the cache, heads, output projection.
#include "attention.h"

#include <array>
#include <cmath>
#include <limits>

#include "norm.h"
#include "rope.h"

namespace moestream::cpu {
namespace {

void project(const Step& step, const LayerWeights& weights) {
  const ScratchLayout& plan = step.plan();
  const std::array<Product, 3> products{{
      {weights.query, step.scratch.at(plan.query)},
      {weights.key, step.scratch.at(plan.key)},
      {weights.value, step.scratch.at(plan.value)},
  }};
  step.multiplier.multiply(step.input(plan.normed, step.config.hidden), step.every_row(), products);
}

void norm_and_rotate(const Step& step, const Vector& norm, std::size_t row, float* head) {
  const ModelConfig& config = step.config;
  rms_norm(step.kernels, head, norm.data(), config.rms_epsilon, config.head_dim, head);
  rotate(head, config.rotary_dims, step.scratch.at(step.plan().rotations) + row * config.rotary_dims);
}

void fill_cache(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  const std::size_t dim = config.head_dim;
  const std::size_t row_bytes = config.kv_row_bytes();
  const KvKernels& kernels = step.kernels.kv(config.kv_type);
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t r = begin; r < end; ++r) {
      const Row& row = step.batch.rows[r];
      float* const key = step.scratch.at(step.plan().key) + r * config.kv_width();
      const float* const value = step.scratch.at(step.plan().value) + r * config.kv_width();
      for (std::size_t head = 0; head < config.kv_heads; ++head) {
        norm_and_rotate(step, weights.key_norm, r, key + head * dim);
        std::uint8_t* const keys = step.sequences.keys(row.sequence, layer, head);
        std::uint8_t* const values = step.sequences.values(row.sequence, layer, head);
        kernels.store(key + head * dim, dim, keys + row.position * row_bytes);
        kernels.store(value + head * dim, dim, values + row.position * row_bytes);
      }
    }
  };
  step.pool.run(step.row_count(), grain_of(config.kv_width() * 8), work);
}

// scores becomes exp(score - maximum); returns their sum, in double so that long contexts lose nothing.
float soften(const VectorKernels& kernels, float* scores, std::size_t count, float maximum) {
  double sum = 0;
  kernels.exponentials(scores, maximum, count);
  for (std::size_t p = 0; p < count; ++p) sum += static_cast<double>(scores[p]);
  return static_cast<float>(sum);
}

void attend_head(const Step& step, const LayerWeights& weights, std::size_t layer, std::size_t r, std::size_t head,
                 std::size_t thread) {
  const ModelConfig& config = step.config;
  const ScratchLayout& plan = step.plan();
  const std::size_t dim = config.head_dim;
  const Row& row = step.batch.rows[r];
  const std::size_t positions = row.position + 1;
  const std::size_t kv_head = head / (config.heads / config.kv_heads);
  const std::size_t row_bytes = config.kv_row_bytes();
  const KvRows keys{step.sequences.keys(row.sequence, layer, kv_head), row_bytes, positions, dim};
  const KvRows values{step.sequences.values(row.sequence, layer, kv_head), row_bytes, positions, dim};
  const KvKernels& kernels = step.kernels.kv(config.kv_type);

  float* const query = step.scratch.at(plan.query) + r * config.query_width() + head * config.query_head_width();
  norm_and_rotate(step, weights.query_norm, r, query);

  float* const scores = step.scratch.at(plan.scores) + thread * config.context_length;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  float maximum = -std::numeric_limits<float>::infinity();
  kernels.dot_rows(query, keys, scores);
  for (std::size_t p = 0; p < positions; ++p) {
    scores[p] *= scale;
    maximum = scores[p] > maximum ? scores[p] : maximum;
  }
  const float sum = soften(step.kernels, scores, positions, maximum);

  float* const out = step.scratch.at(plan.attended) + r * config.attended_width() + head * dim;
  kernels.sum_rows(values, scores, out);
  for (std::size_t i = 0; i < dim; ++i) out[i] /= sum;
  if (config.gated_attention) step.kernels.multiply_sigmoid(out, query + dim, dim);
}

}  // namespace

void run_attention(const Step& step, const LayerWeights& weights, std::size_t layer) {
  const ModelConfig& config = step.config;
  project(step, weights);
  fill_cache(step, weights, layer);
  const auto work = [&](std::size_t begin, std::size_t end, std::size_t thread) {
    for (std::size_t unit = begin; unit < end; ++unit) {
      attend_head(step, weights, layer, unit / config.heads, unit % config.heads, thread);
    }
  };
  const std::size_t operations = step.batch.rows.back().position * config.head_dim;
  step.pool.run(step.row_count() * config.heads, grain_of(operations), work);
  const std::array<Product, 1> output{{{weights.attention_out, step.scratch.at(step.plan().mixed)}}};
  step.multiplier.multiply(step.input(step.plan().attended, config.attended_width()), step.every_row(), output);
}

}  // namespace moestream::cpu
