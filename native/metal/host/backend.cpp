// The steps of backend.h.
//
// A layer's routed experts and its shared expert collect in `pending_` and are encoded together, so that they run beside
// each other; `flush` and `combine` send them off. When every expert was in the slab, a layer is one command buffer:
// experts, sum, next mixer, next router. When some had to be read, it is one for those that were here, one for each
// arrival, and the prepared one behind them.
#include "backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "../../cpu/rope.h"
#include "../../cpu/saved_sequence.h"
#include "../kernels/arguments.h"
#include "gpu_error.h"

namespace moestream::metal {
namespace {

using cpu::TensorType;

[[noreturn]] void refuse(const std::string& sentence) { throw std::logic_error(sentence); }

void require(bool holds, const std::string& sentence) {
  if (!holds) throw GpuError(kModelUnsupported, "the Metal kernels take " + sentence);
}

ModelConfig validated(ModelConfig config) {
  config.validate();
  require(config.hidden % 4 == 0 && config.expert_width % 4 == 0 && config.shared_width % 4 == 0,
          "widths that are multiples of 4");
  require(config.experts <= gpu::kMaxExperts, "at most " + std::to_string(gpu::kMaxExperts) + " experts");
  require(config.experts_per_token <= gpu::kMaxChoices,
          "at most " + std::to_string(gpu::kMaxChoices) + " experts per token");
  if (config.attention_layer_count() > 0) {
    require(config.head_dim % 4 == 0 && config.head_dim <= gpu::kMaxHeadDim,
            "heads of 4, 8, ... 256 values, not " + std::to_string(config.head_dim));
  }
  if (config.delta_layer_count() > 0) {
    require(config.delta_head_dim % 8 == 0 && config.delta_head_dim <= gpu::kDeltaMaxDim,
            "DeltaNet heads of 8, 16, ... 128 values, not " + std::to_string(config.delta_head_dim));
    require(config.conv_kernel >= 2 && config.conv_kernel <= gpu::kMaxConvKernel,
            "convolutions over 2 to " + std::to_string(gpu::kMaxConvKernel) + " tokens");
  }
  return config;
}

// The longest piece of key-value cache or state that one kernel is given.
std::size_t state_reach(const ModelConfig& config) {
  const std::size_t layers = std::max<std::size_t>(config.attention_layer_count(), 1);
  const std::size_t kv = cpu::SequenceStore::kv_bytes(config);
  const std::size_t sequence = kv / config.max_sequences;
  const std::size_t all_states = cpu::SequenceStore::state_bytes(config);
  return std::max(kv - sequence + sequence / (2 * layers), all_states / config.max_sequences);
}

MappedMemory map_state(const Device& device, const ModelConfig& config, const cpu::SequenceStore& sequences) {
  const std::size_t reach = state_reach(config);
  if (reach >= device.max_buffer_bytes()) {
    throw GpuError("PLAN_REFUSED", "the key-value cache is longer than this GPU's longest buffer, " +
                                       std::to_string(device.max_buffer_bytes()) + " bytes: a shorter context fits");
  }
  MappedMemory mapped(device, reach);
  mapped.add(sequences.kv_memory().data(), sequences.kv_memory().size());
  mapped.add(sequences.state_memory().data(), sequences.state_memory().size());
  mapped.map();
  return mapped;
}

}  // namespace

Backend::Backend(ModelConfig config)
    : config_(validated(std::move(config))),
      device_(Device::system_default()),
      submission_(device_.queue()),
      kernels_(device_),
      memory_(device_, config_),
      sequences_(config_),
      state_(map_state(device_, config_, sequences_)),
      weights_(config_),
      chosen_(config_.experts) {
  pending_.reserve(config_.experts + 1);
}

// The GPU must have let go of caches and weights before they are freed.
Backend::~Backend() {
  const objc::Pool pool;
  behind_.reset();
  submission_.drain();
}

cpu::Weights& Backend::unsealed_weights() {
  if (sealed_) refuse("the backend is sealed: its tensors cannot change");
  return weights_;
}

void Backend::seal() {
  unsealed_weights().seal();
  gpu_weights_ = std::make_unique<GpuWeights>(device_, config_, weights_);
  layers_ = std::make_unique<Layers>(kernels_, config_, weights_, *gpu_weights_, memory_, sequences_, state_);
  resident_ = device_.residency_set();
  if (resident_) {
    for (const Buffer* each : gpu_weights_->buffers()) resident_.add(*each);
    resident_.commit_and_request();
    submission_.keep_resident(resident_);
  }
  fingerprint_ = cpu::model_fingerprint(config_, weights_);
  sealed_ = true;
}

void Backend::bind_rows(std::span<const std::int32_t> rows) {
  if (rows.size() < config_.max_rows * cpu::kRowWords) refuse("the row table is shorter than maxRows");
  rows_ = rows;
}

void Backend::bind_routes(std::span<std::int32_t> ids, std::span<float> weights) {
  const std::size_t needed = config_.max_rows * config_.experts_per_token;
  if (ids.size() < needed || weights.size() < needed) refuse("the route tables are shorter than maxRows");
  route_ids_ = ids;
  route_weights_ = weights;
}

void Backend::bind_slab(std::vector<std::span<const std::uint8_t>> segments) {
  await_gpu();
  if (!sealed_) refuse("bindSlab before seal");
  std::size_t longest = 1;
  for (std::size_t layer = 0; layer < config_.layers; ++layer) {
    const cpu::ExpertTypes& types = weights_.layer(layer).expert_types;
    for (const auto& [type, cols, rows] :
         {std::tuple{types.gate, config_.hidden, config_.expert_width},
          std::tuple{types.up, config_.hidden, config_.expert_width},
          std::tuple{types.down, config_.expert_width, config_.hidden}}) {
      longest = std::max(longest, longest_array(type, cols, rows));
    }
  }
  auto mapped = std::make_unique<MappedMemory>(device_, longest);
  for (const auto& each : segments) mapped->add(each.data(), each.size());
  mapped->map();
  slab_memory_ = std::move(mapped);
  slab_ = std::move(segments);
}

void Backend::bind_logits(std::span<float> logits) {
  await_gpu();
  const std::size_t slots = std::min(logits.size() / config_.vocabulary, config_.max_rows);
  if (slots == 0) refuse("the logits have no room for one row");
  logits_memory_ = device_.buffer(slots * config_.vocabulary * sizeof(float));
  logits_ = logits;
}

void Backend::check_sequence(std::size_t sequence) const {
  if (sequence >= config_.max_sequences) refuse("sequence " + std::to_string(sequence) + " does not exist");
}

void Backend::check_settled(std::size_t sequence) const {
  check_sequence(sequence);
  if (!sequences_.settled(sequence)) {
    refuse("the last step of sequence " + std::to_string(sequence) + " did not end; reset it");
  }
}

// Everything committed is done; what was only encoded stays.
void Backend::await_gpu() {
  try {
    submission_.wait();
  } catch (const GpuError&) {
    fail_step();
    throw;
  }
}

// Where a step that failed is left: its sequences stay unsettled, and nothing of it reaches the GPU any more.
void Backend::fail_step() {
  behind_.reset();
  pending_.clear();
  shared_pending_ = false;
  next_ = Next::kBegin;
  for (const cpu::Run& run : batch_.runs) sequences_.unsettle(run.sequence);
}

void Backend::abandon() {
  submission_.drain();
  if (next_ != Next::kBegin && next_ != Next::kLogits) fail_step();
}

void Backend::leave_step_of(std::size_t sequence) {
  await_gpu();
  const bool in_step = next_ != Next::kBegin && std::ranges::any_of(batch_.runs, [sequence](const cpu::Run& run) {
    return run.sequence == sequence;
  });
  if (!in_step) return;
  const bool ended = next_ == Next::kLogits;
  if (ended) {
    next_ = Next::kBegin;
  } else {
    fail_step();
  }
}

void Backend::reset_sequence(std::size_t sequence) {
  check_sequence(sequence);
  leave_step_of(sequence);
  sequences_.reset(sequence);
}

void Backend::copy_sequence(std::size_t from, std::size_t to) {
  await_gpu();
  check_settled(from);
  check_sequence(to);
  if (from == to) return;
  leave_step_of(to);
  sequences_.copy(from, to);
}

std::size_t Backend::save_sequence(std::size_t sequence, std::span<std::uint8_t> into) {
  if (!sealed_) refuse("saveSequence before seal");
  await_gpu();
  check_settled(sequence);
  return cpu::save_sequence(config_, fingerprint_, sequences_, sequence, into);
}

void Backend::restore_sequence(std::size_t sequence, std::span<const std::uint8_t> from) {
  if (!sealed_) refuse("restoreSequence before seal");
  check_sequence(sequence);
  const std::size_t positions = cpu::checked_positions(config_, fingerprint_, from);
  leave_step_of(sequence);
  cpu::load_sequence(sequences_, sequence, positions, from);
}

std::size_t Backend::sequence_bytes(std::size_t positions) const {
  if (positions > config_.context_length) {
    refuse(std::to_string(positions) + " positions are more than the context of " +
           std::to_string(config_.context_length));
  }
  return cpu::saved_bytes(config_, positions);
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

// The GPU reads these while the step is under way; it is idle now.
void Backend::write_rows() {
  auto* const entries = reinterpret_cast<gpu::RowEntry*>(memory_.rows.contents());
  for (std::size_t r = 0; r < batch_.rows.size(); ++r) {
    const cpu::Row& row = batch_.rows[r];
    entries[r] = {static_cast<std::uint32_t>(row.token), static_cast<std::uint32_t>(row.position),
                  static_cast<std::uint32_t>(row.sequence), 0};
    if (config_.attention_layer_count() == 0) continue;
    auto* const rotations = reinterpret_cast<float*>(memory_.rotations.contents());
    cpu::fill_rotation(row.position, config_.rotary_dims, config_.rope_theta, rotations + r * config_.rotary_dims);
  }
}

void Backend::begin(std::size_t row_count) {
  if (!sealed_) refuse("begin before seal");
  if (rows_.empty() || route_ids_.empty()) refuse("begin before bindRows and bindRoutes");
  if (row_count == 0 || row_count > config_.max_rows) refuse("a step has 1 to maxRows rows");
  await_gpu();
  behind_.reset();
  pending_.clear();
  shared_pending_ = false;
  next_ = Next::kBegin;
  batch_ = cpu::read_batch(config_, sequences_, rows_, row_count);
  write_rows();
  for (const cpu::Run& run : batch_.runs) sequences_.extend(run.sequence, run.row_count);
  Commands commands = submission_.begin();
  layers_->embed(commands, batch_);
  layers_->mix(commands, 0, batch_);
  submission_.commit(std::move(commands));
  next_ = Next::kMix;
  next_layer_ = 0;
}

// The one wait of a layer: for the routes, behind which everything up to them is done too.
void Backend::mix(std::size_t layer) {
  expect_layer(Next::kMix, layer, "mix");
  next_ = Next::kBegin;
  await_gpu();
  read_routes(layer);
  sort_routes();
  shared_done_ = config_.shared_width == 0;
  next_ = Next::kCombine;
}

void Backend::read_routes(std::size_t layer) {
  const std::size_t count = batch_.rows.size() * config_.experts_per_token;
  const auto* const ids = reinterpret_cast<const std::int32_t*>(memory_.route_ids.contents());
  const auto* const weights = reinterpret_cast<const float*>(memory_.route_weights.contents());
  for (std::size_t i = 0; i < count; ++i) {
    const bool valid = ids[i] >= 0 && static_cast<std::size_t>(ids[i]) < config_.experts;
    if (valid && std::isfinite(weights[i])) continue;
    throw std::runtime_error("the router of layer " + std::to_string(layer) + " gives no number for row " +
                             std::to_string(i / config_.experts_per_token) + " of this step");
  }
  std::copy_n(ids, count, route_ids_.data());
  std::copy_n(weights, count, route_weights_.data());
}

// Each expert's rows together: a counting sort of (row, choice) by expert. The GPU has read the maps of the layer before.
void Backend::sort_routes() {
  const std::size_t choices = config_.experts_per_token;
  const std::size_t count = batch_.rows.size() * choices;
  const auto* const ids = reinterpret_cast<const std::int32_t*>(memory_.route_ids.contents());
  auto* const from = reinterpret_cast<std::uint32_t*>(memory_.map_from.contents());
  auto* const to = reinterpret_cast<std::uint32_t*>(memory_.map_to.contents());
  std::ranges::fill(chosen_, Chosen{});
  for (std::size_t i = 0; i < count; ++i) ++chosen_[static_cast<std::size_t>(ids[i])].count;
  std::size_t first = 0;
  for (Chosen& each : chosen_) {
    each.first = first;
    first += (each.count + kMapAlign - 1) / kMapAlign * kMapAlign;
    each.count = 0;
  }
  for (std::size_t i = 0; i < count; ++i) {
    Chosen& each = chosen_[static_cast<std::size_t>(ids[i])];
    const std::size_t place = each.first + each.count++;
    from[place] = static_cast<std::uint32_t>(i / choices);
    to[place] = static_cast<std::uint32_t>(i);
  }
}

void Backend::shared(std::size_t layer) {
  expect_layer(Next::kCombine, layer, "shared");
  if (config_.shared_width == 0 || shared_done_) return;
  shared_pending_ = true;
  shared_done_ = true;
}

void Backend::copy_stream(std::size_t row, std::span<float> into) const {
  expect(Next::kCombine, "copyStream");
  if (row >= batch_.rows.size() || into.size() != config_.hidden) refuse("copyStream of a row that is not in this step");
  // What comes behind the experts is encoded, not committed: nothing writes the stream now.
  std::memcpy(into.data(), memory_.stream.contents() + row * config_.hidden * sizeof(float), into.size_bytes());
}

void Backend::expert(std::size_t layer, std::size_t expert, std::size_t segment, const cpu::ExpertPlaces& places) {
  expect_layer(Next::kCombine, layer, "expert");
  if (expert >= config_.experts || chosen_[expert].count == 0) {
    refuse("no row chose expert " + std::to_string(expert));
  }
  Chosen& chosen = chosen_[expert];
  if (chosen.done) refuse("expert " + std::to_string(expert) + " has already run");
  const cpu::ExpertTypes& types = weights_.layer(layer).expert_types;
  const std::size_t map_bytes = chosen.first * sizeof(std::uint32_t);
  const std::size_t inner_bytes = chosen.first * config_.expert_width * sizeof(float);
  const Place packed = at(memory_.identity);
  const auto matrix = [&](const cpu::MatrixPlace& place, TensorType type, std::size_t cols, std::size_t rows) {
    return gpu_matrix(*slab_memory_, cpu::slab_matrix(slab_, segment, place, type, cols, rows));
  };
  pending_.push_back({
      .gate = matrix(places.gate, types.gate, config_.hidden, config_.expert_width),
      .up = matrix(places.up, types.up, config_.hidden, config_.expert_width),
      .down = matrix(places.down, types.down, config_.expert_width, config_.hidden),
      .in = {at(memory_.map_from, map_bytes), packed, chosen.count, true},
      .out = {packed, at(memory_.map_to, map_bytes), chosen.count, true},
      .inner = at(memory_.inner, inner_bytes),
      .inner_gate = at(memory_.inner_gate, inner_bytes),
      .inner_up = at(memory_.inner_up, inner_bytes),
      .output = at(memory_.routed),
  });
  chosen.done = true;
}

void Backend::encode_pending(Commands& commands) {
  if (shared_pending_) {
    layers_->shared_score(commands, next_layer_, batch_.rows.size());
    pending_.push_back(layers_->shared_block(next_layer_, batch_.rows.size()));
  }
  layers_->products().feed_forward(commands, at(memory_.normed), pending_);
  pending_.clear();
  shared_pending_ = false;
}

void Backend::encode_behind_experts(Commands& commands) {
  layers_->combine(commands, next_layer_, batch_.rows.size());
  if (next_layer_ + 1 < config_.layers) layers_->mix(commands, next_layer_ + 1, batch_);
}

void Backend::flush() {
  if (next_ != Next::kCombine) return;
  if (anything_pending()) {
    Commands commands = submission_.begin();
    encode_pending(commands);
    submission_.commit(std::move(commands));
  }
  if (behind_.has_value()) return;
  behind_.emplace(submission_.begin());
  encode_behind_experts(*behind_);
}

void Backend::finish() {
  if (next_ == Next::kCombine) flush();
  await_gpu();
}

void Backend::combine(std::size_t layer) {
  expect_layer(Next::kCombine, layer, "combine");
  if (!shared_done_) refuse("combine before the shared expert of layer " + std::to_string(layer));
  for (std::size_t expert = 0; expert < chosen_.size(); ++expert) {
    if (chosen_[expert].count > 0 && !chosen_[expert].done) {
      refuse("expert " + std::to_string(expert) + " was chosen and has not run");
    }
  }
  if (behind_.has_value()) {
    flush();
    submission_.commit(std::move(*behind_));
    behind_.reset();
  } else {
    Commands commands = submission_.begin();
    if (anything_pending()) {
      encode_pending(commands);
      commands.barrier();
    }
    encode_behind_experts(commands);
    submission_.commit(std::move(commands));
  }
  ++next_layer_;
  if (next_layer_ < config_.layers) {
    next_ = Next::kMix;
    return;
  }
  next_ = Next::kLogits;
  for (const cpu::Run& run : batch_.runs) sequences_.settle(run.sequence);
}

void Backend::logits(std::size_t first_row, std::size_t row_count, std::size_t first_slot) {
  expect(Next::kLogits, "logits");
  const std::size_t slots = logits_.size() / config_.vocabulary;
  const std::size_t rows_left = batch_.rows.size() - std::min(first_row, batch_.rows.size());
  if (row_count > rows_left) refuse("logits of rows that are not in this step");
  if (first_slot > slots || row_count > slots - first_slot) refuse("logits beyond the bound slots");
  if (row_count == 0) return;
  Commands commands = submission_.begin();
  layers_->head(commands, first_row, row_count, logits_memory_);
  submission_.commit(std::move(commands));
  await_gpu();
  std::memcpy(logits_.data() + first_slot * config_.vocabulary, logits_memory_.contents(),
              row_count * config_.vocabulary * sizeof(float));
}

cpu::Footprint footprint(const ModelConfig& config) {
  const ModelConfig checked = validated(config);
  return {cpu::SequenceStore::kv_bytes(checked), cpu::SequenceStore::state_bytes(checked),
          GpuMemorySizes(checked).total() + 2 * cpu::Weights::kept_bytes(checked)};
}

}  // namespace moestream::metal
