// The steps of backend.h. Inputs are copied out of shared memory when a step begins (rows) and kept beside the copies
// that the caller reads (routes), so nothing another thread writes later can change a step under way.
#include "backend.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "attention.h"
#include "delta_net.h"
#include "norm.h"
#include "rope.h"
#include "router.h"
#include "row_reader.h"
#include "saved_sequence.h"

namespace moestream::cpu {
namespace {

ModelConfig validated(ModelConfig config) {
  config.validate();
  return config;
}

Multiplier multiplier_for(const ModelConfig& config, const Scratch& scratch, ThreadPool& pool) {
  if (config.precision == Precision::kExact) {
    return Multiplier(pool, scratch.all(scratch.plan.weight_rows), config.max_cols());
  }
  return Multiplier(FastMultiplier(pool, scratch.all(scratch.plan.prepared), product_kernels()), pool);
}

[[noreturn]] void refuse(const std::string& sentence) { throw std::logic_error(sentence); }

}  // namespace

Backend::Backend(ModelConfig config)
    : config_(validated(std::move(config))),
      scratch_(config_),
      sequences_(config_),
      pool_(config_.threads, config_.spins),
      multiplier_(multiplier_for(config_, scratch_, pool_)),
      weights_(config_),
      step_{config_, batch_, scratch_, sequences_, multiplier_, vector_kernels(), pool_} {
  const std::span<std::uint32_t> rows = scratch_.all(scratch_.plan.all_rows);
  std::iota(rows.begin(), rows.end(), 0u);
}

Weights& Backend::unsealed_weights() {
  if (sealed_) refuse("the backend is sealed: its tensors cannot change");
  return weights_;
}

void Backend::seal() {
  unsealed_weights().seal();
  fingerprint_ = model_fingerprint(config_, weights_);
  sealed_ = true;
}

void Backend::bind_rows(std::span<const std::int32_t> rows) {
  if (rows.size() < config_.max_rows * kRowWords) refuse("the row table is shorter than maxRows");
  rows_ = rows;
}

void Backend::bind_routes(std::span<std::int32_t> ids, std::span<float> weights) {
  const std::size_t needed = config_.max_rows * config_.experts_per_token;
  if (ids.size() < needed || weights.size() < needed) refuse("the route tables are shorter than maxRows");
  route_ids_ = ids;
  route_weights_ = weights;
}

void Backend::bind_slab(std::vector<std::span<const std::uint8_t>> segments) { slab_ = std::move(segments); }

void Backend::bind_logits(std::span<float> logits) { logits_ = logits; }

void Backend::check_sequence(std::size_t sequence) const {
  if (sequence >= config_.max_sequences) refuse("sequence " + std::to_string(sequence) + " does not exist");
}

void Backend::check_settled(std::size_t sequence) const {
  check_sequence(sequence);
  if (!sequences_.settled(sequence)) {
    refuse("the last step of sequence " + std::to_string(sequence) + " did not end; reset it");
  }
}

// A step cannot go on when one of its sequences has become another.
void Backend::leave_step_of(std::size_t sequence) {
  const bool in_step = next_ != Next::kBegin && std::ranges::any_of(batch_.runs, [sequence](const Run& run) {
    return run.sequence == sequence;
  });
  if (in_step) next_ = Next::kBegin;
}

void Backend::reset_sequence(std::size_t sequence) {
  check_sequence(sequence);
  leave_step_of(sequence);
  sequences_.reset(sequence);
}

void Backend::copy_sequence(std::size_t from, std::size_t to) {
  check_settled(from);
  check_sequence(to);
  if (from == to) return;
  leave_step_of(to);
  sequences_.copy(from, to);
}

std::size_t Backend::save_sequence(std::size_t sequence, std::span<std::uint8_t> into) const {
  if (!sealed_) refuse("saveSequence before seal");
  check_settled(sequence);
  return moestream::cpu::save_sequence(config_, fingerprint_, sequences_, sequence, into);
}

void Backend::restore_sequence(std::size_t sequence, std::span<const std::uint8_t> from) {
  if (!sealed_) refuse("restoreSequence before seal");
  check_sequence(sequence);
  const std::size_t positions = checked_positions(config_, fingerprint_, from);
  leave_step_of(sequence);
  load_sequence(sequences_, sequence, positions, from);
}

std::size_t Backend::sequence_bytes(std::size_t positions) const {
  if (positions > config_.context_length) {
    refuse(std::to_string(positions) + " positions are more than the context of " +
           std::to_string(config_.context_length));
  }
  return saved_bytes(config_, positions);
}

void Backend::expect(Next next, const char* call) const {
  if (!sealed_) refuse(std::string(call) + " before seal");
  if (next_ != next) refuse(std::string(call) + " is not the next call of this step");
}

void Backend::expect_layer(Next next, std::size_t layer, const char* call) const {
  expect(next, call);
  if (layer != next_layer_) {
    refuse(std::string(call) + " of layer " + std::to_string(layer) + " while layer " + std::to_string(next_layer_) +
           " is computed");
  }
}

void Backend::embed() {
  const Matrix& table = weights_.global().embedding;
  const RowReader reader(table);
  for (std::size_t r = 0; r < batch_.rows.size(); ++r) {
    const Row& row = batch_.rows[r];
    reader.read(row.token, scratch_.at(scratch_.plan.stream) + r * config_.hidden);
    if (config_.attention_layer_count() > 0) {
      fill_rotation(row.position, config_.rotary_dims, config_.rope_theta,
                    scratch_.at(scratch_.plan.rotations) + r * config_.rotary_dims);
    }
  }
}

void Backend::begin(std::size_t row_count) {
  if (!sealed_) refuse("begin before seal");
  if (rows_.empty() || route_ids_.empty()) refuse("begin before bindRows and bindRoutes");
  if (row_count == 0 || row_count > config_.max_rows) refuse("a step has 1 to maxRows rows");
  batch_ = read_batch(config_, sequences_, rows_, row_count);
  for (const Run& run : batch_.runs) sequences_.extend(run.sequence, run.row_count);
  embed();
  next_ = Next::kMix;
  next_layer_ = 0;
}

// `normed` = norm of `stream`; row first_row comes to stand first.
void Backend::norm_stream(std::size_t first_row, std::size_t row_count, const Vector& weight) {
  const std::size_t hidden = config_.hidden;
  const float* const stream = scratch_.at(scratch_.plan.stream) + first_row * hidden;
  float* const normed = scratch_.at(scratch_.plan.normed);
  pool_.run(row_count, grain_of(hidden), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t r = begin; r < end; ++r) {
      rms_norm(step_.kernels, stream + r * hidden, weight.data(), config_.rms_epsilon, hidden, normed + r * hidden);
    }
  });
}

void Backend::add_mixed() {
  float* const stream = scratch_.at(scratch_.plan.stream);
  const float* const mixed = scratch_.at(scratch_.plan.mixed);
  const std::size_t count = step_.row_count() * config_.hidden;
  pool_.run(count, grain_of(1), [&](std::size_t begin, std::size_t end, std::size_t) {
    step_.kernels.add_scaled(stream + begin, mixed + begin, 1.0f, end - begin);
  });
}

void Backend::publish_routes() const {
  const std::size_t count = step_.row_count() * config_.experts_per_token;
  std::copy_n(scratch_.at(scratch_.plan.route_ids), count, route_ids_.data());
  std::copy_n(scratch_.at(scratch_.plan.route_weights), count, route_weights_.data());
}

void Backend::mix(std::size_t layer) {
  expect_layer(Next::kMix, layer, "mix");
  next_ = Next::kBegin;  // where a step that fails below is left: its sequences stay unsettled
  const LayerWeights& weights = weights_.layer(layer);
  norm_stream(0, step_.row_count(), weights.mixer_norm);
  if (config_.is_attention(layer)) {
    run_attention(step_, weights, layer);
  } else {
    run_delta_net(step_, weights, layer);
  }
  add_mixed();
  norm_stream(0, step_.row_count(), weights.moe_norm);
  run_router(step_, weights, layer);
  publish_routes();
  begin_experts(step_);
  shared_done_ = config_.shared_width == 0;
  next_ = Next::kCombine;
}

void Backend::copy_stream(std::size_t row, std::span<float> into) const {
  expect(Next::kCombine, "copyStream");
  if (row >= step_.row_count() || into.size() != config_.hidden) refuse("copyStream of a row that is not in this step");
  copy_grown_stream(step_, row, shared_done_, into);
}

void Backend::shared(std::size_t layer) {
  expect_layer(Next::kCombine, layer, "shared");
  if (config_.shared_width == 0) return;
  run_shared_expert(step_, weights_.layer(layer));
  shared_done_ = true;
}

void Backend::expert(std::size_t layer, std::size_t expert, std::size_t segment, const ExpertPlaces& places) {
  expect_layer(Next::kCombine, layer, "expert");
  const ExpertTypes& types = weights_.layer(layer).expert_types;
  const ExpertWeights blocks{
      .gate = slab_matrix(slab_, segment, places.gate, types.gate, config_.hidden, config_.expert_width),
      .up = slab_matrix(slab_, segment, places.up, types.up, config_.hidden, config_.expert_width),
      .down = slab_matrix(slab_, segment, places.down, types.down, config_.expert_width, config_.hidden),
  };
  run_expert(step_, blocks, expert);
}

void Backend::combine(std::size_t layer) {
  expect_layer(Next::kCombine, layer, "combine");
  if (!shared_done_) refuse("combine before the shared expert of layer " + std::to_string(layer));
  combine_experts(step_);
  ++next_layer_;
  if (next_layer_ < config_.layers) {
    next_ = Next::kMix;
    return;
  }
  next_ = Next::kLogits;
  for (const Run& run : batch_.runs) sequences_.settle(run.sequence);
}

void Backend::logits(std::size_t first_row, std::size_t row_count, std::size_t first_slot) {
  expect(Next::kLogits, "logits");
  const std::size_t slots = logits_.size() / config_.vocabulary;
  const std::size_t rows_left = step_.row_count() - std::min(first_row, step_.row_count());
  if (row_count > rows_left) refuse("logits of rows that are not in this step");
  if (first_slot > slots || row_count > slots - first_slot) refuse("logits beyond the bound slots");
  if (row_count == 0) return;
  norm_stream(first_row, row_count, weights_.global().final_norm);
  const std::span<const std::uint32_t> rows = scratch_.all(scratch_.plan.all_rows).first(row_count);
  const Activations input(scratch_.all(scratch_.plan.normed).first(row_count * config_.hidden), config_.hidden);
  const std::array<Product, 1> head{{{weights_.global().head, logits_.data() + first_slot * config_.vocabulary}}};
  multiplier_.multiply(input, {rows, rows}, head);
}

}  // namespace moestream::cpu
