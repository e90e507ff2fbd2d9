// One model on the CPU, driven in steps of one layer for a batch of rows.
//
// The caller reads experts while this computes, so the order of calls is the contract: begin; for each layer mix,
// shared, expert for every chosen expert, combine; then logits. Each call checks that it is the next one and throws
// std::logic_error otherwise, before anything is changed. Used from one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "expert_places.h"
#include "moe.h"
#include "step.h"
#include "weights.h"

namespace moestream::cpu {

class Backend {
 public:
  struct Scope {};  // nothing is needed around a call

  // Throws std::invalid_argument, std::length_error or std::bad_alloc.
  explicit Backend(ModelConfig config);

  const ModelConfig& config() const { return config_; }
  Weights& unsealed_weights();
  void seal();

  void bind_rows(std::span<const std::int32_t> rows);
  void bind_routes(std::span<std::int32_t> ids, std::span<float> weights);
  void bind_slab(std::vector<std::span<const std::uint8_t>> segments);
  void bind_logits(std::span<float> logits);

  void reset_sequence(std::size_t sequence);
  // A sequence whose last step did not end can be neither copied nor saved.
  void copy_sequence(std::size_t from, std::size_t to);
  // Returns the bytes written.
  std::size_t save_sequence(std::size_t sequence, std::span<std::uint8_t> into) const;
  // Throws StateRefused, and changes nothing then.
  void restore_sequence(std::size_t sequence, std::span<const std::uint8_t> from);
  std::size_t sequence_bytes(std::size_t positions) const;

  void begin(std::size_t row_count);
  void mix(std::size_t layer);
  // The residual stream of a row as the router saw it, before its norm, and what the experts computed since will add to it:
  // for predictors. Between mix and combine.
  void copy_stream(std::size_t row, std::span<float> into) const;
  void shared(std::size_t layer);
  void expert(std::size_t layer, std::size_t expert, std::size_t segment, const ExpertPlaces& places);
  // Work is done when its call returns, so there is nothing to send off or to wait for.
  void flush() {}
  void finish() {}
  void combine(std::size_t layer);
  void logits(std::size_t first_row, std::size_t row_count, std::size_t first_slot);
  // Leaves the step under way; its sequences stay unsettled.
  void abandon() { next_ = Next::kBegin; }

 private:
  enum class Next { kBegin, kMix, kCombine, kLogits };

  void check_sequence(std::size_t sequence) const;
  void check_settled(std::size_t sequence) const;
  void leave_step_of(std::size_t sequence);
  void expect(Next next, const char* call) const;
  void expect_layer(Next next, std::size_t layer, const char* call) const;
  void embed();
  void norm_stream(std::size_t first_row, std::size_t row_count, const Vector& weight);
  void add_mixed();
  void publish_routes() const;

  const ModelConfig config_;
  Scratch scratch_;
  SequenceStore sequences_;
  ThreadPool pool_;
  Multiplier multiplier_;
  Weights weights_;
  Batch batch_;
  Step step_;

  std::span<const std::int32_t> rows_;  // (maxRows, 4): token, position, sequence, 0
  std::span<std::int32_t> route_ids_;   // (maxRows, expertsPerToken)
  std::span<float> route_weights_;      // (maxRows, expertsPerToken)
  std::vector<std::span<const std::uint8_t>> slab_;
  std::span<float> logits_;             // (slots, vocabulary)

  bool sealed_ = false;
  std::uint64_t fingerprint_ = 0;  // once sealed
  Next next_ = Next::kBegin;
  std::size_t next_layer_ = 0;
  bool shared_done_ = false;
};

}  // namespace moestream::cpu
