// One model on the GPU, driven in steps of one layer for a batch of rows: the contract of native/cpu/backend.h.
//
// What differs is when things happen. Calls encode; the GPU runs behind them. `combine` commits the sum behind the
// experts together with the next layer up to its router, so the only wait of a layer is the one in `mix`, for its
// routes. An expert may be read by the GPU until `finish`, `mix` of the next layer or `logits` has returned: until then
// its slot must stay as it is. `flush` sends off what is there before the caller sleeps, and prepares what comes behind
// the experts that are still being read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "../../cpu/batch.h"
#include "../../cpu/expert_places.h"
#include "../../cpu/footprint.h"
#include "../../cpu/sequence_state.h"
#include "../../cpu/weights.h"
#include "commands.h"
#include "gpu_memory.h"
#include "gpu_weights.h"
#include "kernels.h"
#include "layers.h"

namespace moestream::metal {

class Backend {
 public:
  // Metal's temporary objects end with the call that made them.
  using Scope = objc::Pool;

  // Throws std::invalid_argument, std::length_error, std::bad_alloc or GpuError.
  explicit Backend(ModelConfig config);
  ~Backend();

  const ModelConfig& config() const { return config_; }
  cpu::Weights& unsealed_weights();
  void seal();

  void bind_rows(std::span<const std::int32_t> rows);
  void bind_routes(std::span<std::int32_t> ids, std::span<float> weights);
  void bind_slab(std::vector<std::span<const std::uint8_t>> segments);
  void bind_logits(std::span<float> logits);

  void reset_sequence(std::size_t sequence);
  void copy_sequence(std::size_t from, std::size_t to);
  std::size_t save_sequence(std::size_t sequence, std::span<std::uint8_t> into);
  void restore_sequence(std::size_t sequence, std::span<const std::uint8_t> from);
  std::size_t sequence_bytes(std::size_t positions) const;

  void begin(std::size_t row_count);
  void mix(std::size_t layer);
  void shared(std::size_t layer);
  // The residual stream of a row as the router has just seen it, before its norm: for predictors. Between mix and combine.
  void copy_stream(std::size_t row, std::span<float> into) const;
  void expert(std::size_t layer, std::size_t expert, std::size_t segment, const cpu::ExpertPlaces& places);
  void flush();
  void finish();
  void combine(std::size_t layer);
  void logits(std::size_t first_row, std::size_t row_count, std::size_t first_slot);
  void abandon();

  const SubmissionCounts& counts() const { return submission_.counts(); }

 private:
  enum class Next { kBegin, kMix, kCombine, kLogits };

  // Rows of the maps that one expert has.
  struct Chosen {
    std::size_t first = 0;
    std::size_t count = 0;
    bool done = false;
  };

  void check_sequence(std::size_t sequence) const;
  void check_settled(std::size_t sequence) const;
  void leave_step_of(std::size_t sequence);
  void expect(Next next, const char* call) const;
  void expect_layer(Next next, std::size_t layer, const char* call) const;
  void fail_step();
  void await_gpu();
  void write_rows();
  void read_routes(std::size_t layer);
  void sort_routes();
  bool anything_pending() const { return shared_pending_ || !pending_.empty(); }
  void encode_pending(Commands& commands);
  void encode_behind_experts(Commands& commands);

  const ModelConfig config_;
  Device device_;
  Submission submission_;
  Kernels kernels_;
  GpuMemory memory_;
  cpu::SequenceStore sequences_;
  MappedMemory state_;
  cpu::Weights weights_;
  std::unique_ptr<GpuWeights> gpu_weights_;  // once sealed, as all below
  std::unique_ptr<Layers> layers_;
  ResidencySet resident_;
  std::unique_ptr<MappedMemory> slab_memory_;
  Buffer logits_memory_;

  cpu::Batch batch_;
  std::span<const std::int32_t> rows_;
  std::span<std::int32_t> route_ids_;
  std::span<float> route_weights_;
  std::vector<std::span<const std::uint8_t>> slab_;
  std::span<float> logits_;

  std::vector<Chosen> chosen_;        // (experts), of the layer under way
  std::vector<FeedForward> pending_;  // experts that are here and not encoded yet
  bool shared_pending_ = false;
  bool shared_done_ = false;
  std::optional<Commands> behind_;  // the sum and the next layer, encoded and not committed

  bool sealed_ = false;
  std::uint64_t fingerprint_ = 0;
  Next next_ = Next::kBegin;
  std::size_t next_layer_ = 0;
};

// What a backend of this configuration will allocate. Throws as the constructor does for what cannot be.
cpu::Footprint footprint(const ModelConfig& config);

}  // namespace moestream::metal
