// Gather, feed forward, scatter and sum. A scan of (rows, choices) finds an expert's rows: 5,120 comparisons for a
// chunk of 512 rows, nothing beside the 12 million multiplications of one row of the expert.
#include "moe.h"

#include <algorithm>
#include <array>
#include <span>
#include <stdexcept>
#include <string>

#include "elementary.h"

namespace moestream::cpu {
namespace {

std::size_t choice_count(const Step& step) { return step.row_count() * step.config.experts_per_token; }

// The rows that chose the expert, and their places in `routed`.
RowMap rows_of(const Step& step, std::size_t expert) {
  const ScratchLayout& plan = step.plan();
  const std::int32_t* const ids = step.scratch.at(plan.route_ids);
  std::uint32_t* const rows = step.scratch.at(plan.chosen_rows);
  std::uint32_t* const slots = step.scratch.at(plan.chosen_slots);
  std::size_t found = 0;
  for (std::size_t slot = 0; slot < choice_count(step); ++slot) {
    if (static_cast<std::size_t>(ids[slot]) != expert) continue;
    rows[found] = static_cast<std::uint32_t>(slot / step.config.experts_per_token);
    slots[found] = static_cast<std::uint32_t>(slot);
    ++found;
  }
  return {{rows, found}, {slots, found}};
}

void combine_row(const Step& step, std::size_t row) {
  const ModelConfig& config = step.config;
  const ScratchLayout& plan = step.plan();
  const std::size_t choices = config.experts_per_token;
  const float* const routed = step.scratch.at(plan.routed) + row * choices * config.hidden;
  const float* const weights = step.scratch.at(plan.route_weights) + row * choices;
  // `mixed` is free between the mixer's residual and the next layer.
  float* const sum = step.scratch.at(plan.mixed) + row * config.hidden;
  float* const stream = step.scratch.at(plan.stream) + row * config.hidden;
  std::fill_n(sum, config.hidden, 0.0f);
  for (std::size_t k = 0; k < choices; ++k) {
    step.kernels.add_scaled(sum, routed + k * config.hidden, weights[k], config.hidden);
  }
  if (config.shared_width > 0) {
    const float* const shared = step.scratch.at(plan.shared_output) + row * config.hidden;
    step.kernels.add_scaled(sum, shared, step.scratch.at(plan.shared_gate)[row], config.hidden);
  }
  step.kernels.add_scaled(stream, sum, 1.0f, config.hidden);
}

}  // namespace

void copy_grown_stream(const Step& step, std::size_t row, bool shared_done, std::span<float> into) {
  const ScratchLayout& plan = step.plan();
  const std::size_t hidden = step.config.hidden;
  const std::size_t first = row * step.config.experts_per_token;
  std::copy_n(step.scratch.at(plan.stream) + row * hidden, hidden, into.data());
  for (std::size_t slot = first; slot < first + step.config.experts_per_token; ++slot) {
    if (step.scratch.at(plan.route_done)[slot] == 0) continue;
    const float* const routed = step.scratch.at(plan.routed) + slot * hidden;
    step.kernels.add_scaled(into.data(), routed, step.scratch.at(plan.route_weights)[slot], hidden);
  }
  if (step.config.shared_width == 0 || !shared_done) return;
  const float* const shared = step.scratch.at(plan.shared_output) + row * hidden;
  step.kernels.add_scaled(into.data(), shared, step.scratch.at(plan.shared_gate)[row], hidden);
}

void begin_experts(const Step& step) {
  std::fill_n(step.scratch.at(step.plan().route_done), choice_count(step), std::uint8_t{0});
}

void run_expert(const Step& step, const ExpertWeights& weights, std::size_t expert) {
  const ScratchLayout& plan = step.plan();
  const RowMap map = rows_of(step, expert);
  std::uint8_t* const done = step.scratch.at(plan.route_done);
  if (map.from.empty()) throw std::logic_error("no row chose expert " + std::to_string(expert));
  if (done[map.to.front()] != 0) throw std::logic_error("expert " + std::to_string(expert) + " has already run");

  const std::span<const std::uint32_t> packed = step.scratch.all(plan.all_rows).first(map.from.size());
  float* const inner = step.scratch.at(plan.expert_inner);
  const std::size_t width = step.config.expert_width;
  step.multiplier.multiply_gated(step.input(plan.normed, step.config.hidden), {map.from, packed}, weights.gate,
                                 weights.up, inner);
  const Activations inside({inner, map.from.size() * width}, width);
  const std::array<Product, 1> down{{{weights.down, step.scratch.at(plan.routed)}}};
  step.multiplier.multiply(inside, {packed, map.to}, down);
  for (const std::uint32_t slot : map.to) done[slot] = 1;
}

void run_shared_expert(const Step& step, const LayerWeights& weights) {
  const ModelConfig& config = step.config;
  const ScratchLayout& plan = step.plan();
  const Activations input = step.input(plan.normed, config.hidden);
  const RowMap rows = step.every_row();
  step.multiplier.multiply_gated(input, rows, weights.shared_gate, weights.shared_up,
                                 step.scratch.at(plan.shared_inner));
  const std::array<Product, 1> down{{{weights.shared_down, step.scratch.at(plan.shared_output)}}};
  step.multiplier.multiply(step.input(plan.shared_inner, config.shared_width), rows, down);
  float* const gate = step.scratch.at(plan.shared_gate);
  for (std::size_t r = 0; r < step.row_count(); ++r) {
    gate[r] = sigmoid(step.kernels.dot(weights.shared_mix.data(), input.row(r), config.hidden));
  }
}

void combine_experts(const Step& step) {
  const ScratchLayout& plan = step.plan();
  const std::span<const std::uint8_t> done = step.scratch.all(plan.route_done).first(choice_count(step));
  const auto missing = std::ranges::find(done, std::uint8_t{0});
  if (missing != done.end()) {
    const std::int32_t expert = step.scratch.at(plan.route_ids)[missing - done.begin()];
    throw std::logic_error("expert " + std::to_string(expert) + " was chosen and has not run");
  }
  const std::size_t operations = step.config.hidden * (step.config.experts_per_token + 2) / 4;
  step.pool.run(step.row_count(), grain_of(operations), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t r = begin; r < end; ++r) combine_row(step, r);
  });
}

}  // namespace moestream::cpu
