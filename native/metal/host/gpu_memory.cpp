// The sizes of gpu_memory.h.
#include "gpu_memory.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>

#include "../../cpu/memory.h"
#include "../kernels/arguments.h"

namespace moestream::metal {
namespace {

using cpu::product;

constexpr std::size_t kPartialBytesMax = std::size_t{16} << 20;
constexpr std::size_t kFloat = sizeof(float);

std::size_t partial_row_bytes(const ModelConfig& config) {
  return product({config.heads, gpu::kMaxAttentionSplits, config.head_dim + 2, kFloat});
}

// An empty buffer is one that no kernel of this model uses; Metal makes none of 0 bytes.
Buffer make(const Device& device, std::size_t bytes) { return bytes == 0 ? Buffer() : device.buffer(bytes); }

}  // namespace

GpuMemorySizes::GpuMemorySizes(const ModelConfig& config) {
  const std::size_t count = config.max_rows;
  const std::size_t choices = product({count, config.experts_per_token});
  const bool attends = config.attention_layer_count() > 0;
  const bool delta = config.delta_layer_count() > 0;
  const auto floats = [](bool used, std::size_t rows_of, std::size_t width) {
    return used ? product({rows_of, width, kFloat}) : 0;
  };
  if (attends) attention_rows = std::clamp<std::size_t>(kPartialBytesMax / partial_row_bytes(config), 1, count);

  rows = product({count, sizeof(gpu::RowEntry)});
  rotations = floats(attends, count, std::max<std::size_t>(config.rotary_dims, 1));
  identity = floats(true, count, 1);
  stream = normed = mixed = floats(true, count, config.hidden);
  query = floats(attends, count, config.query_width());
  key = value = floats(attends, count, config.kv_width());
  partial = attends ? product({attention_rows, partial_row_bytes(config)}) : 0;
  attended = floats(attends, count, config.attended_width());
  conv = floats(delta, count, config.conv_channels());
  delta_gate = delta_output = floats(delta, count, config.delta_value_width());
  beta = floats(delta, count, 2 * config.delta_value_heads);
  alpha = floats(delta, count, config.delta_value_heads);
  scores = floats(true, count, config.experts);
  route_ids = route_weights = floats(true, choices, 1);
  // Each expert's part starts on a multiple of kMapAlign rows.
  const std::size_t chosen = std::min(choices, config.experts);
  const std::size_t mapped = choices + chosen * (kMapAlign - 1);
  map_from = map_to = floats(true, mapped, 1);
  inner = inner_gate = inner_up = floats(true, mapped, config.expert_width);
  routed = floats(true, choices, config.hidden);
  const bool shared = config.shared_width > 0;
  shared_inner = shared_inner_gate = shared_inner_up = floats(shared, count, config.shared_width);
  shared_output = floats(shared, count, config.hidden);
  shared_score = floats(shared, count, 1);
}

std::size_t GpuMemorySizes::total() const {
  const std::initializer_list<std::size_t> all = {
      rows,       rotations,     identity,     stream,            normed,          mixed,         query,      key,
      value,      partial,       attended,     conv,              delta_gate,      beta,          alpha,      delta_output,
      scores,     route_ids,     route_weights, map_from,         map_to,          inner,         inner_gate, inner_up,
      routed,     shared_inner,  shared_inner_gate, shared_inner_up, shared_output, shared_score};
  return std::accumulate(all.begin(), all.end(), std::size_t{0});
}

GpuMemory::GpuMemory(const Device& device, const ModelConfig& config)
    : sizes(config),
      rows(make(device, sizes.rows)),
      rotations(make(device, sizes.rotations)),
      identity(make(device, sizes.identity)),
      stream(make(device, sizes.stream)),
      normed(make(device, sizes.normed)),
      mixed(make(device, sizes.mixed)),
      query(make(device, sizes.query)),
      key(make(device, sizes.key)),
      value(make(device, sizes.value)),
      partial(make(device, sizes.partial)),
      attended(make(device, sizes.attended)),
      conv(make(device, sizes.conv)),
      delta_gate(make(device, sizes.delta_gate)),
      beta(make(device, sizes.beta)),
      alpha(make(device, sizes.alpha)),
      delta_output(make(device, sizes.delta_output)),
      scores(make(device, sizes.scores)),
      route_ids(make(device, sizes.route_ids)),
      route_weights(make(device, sizes.route_weights)),
      map_from(make(device, sizes.map_from)),
      map_to(make(device, sizes.map_to)),
      inner(make(device, sizes.inner)),
      inner_gate(make(device, sizes.inner_gate)),
      inner_up(make(device, sizes.inner_up)),
      routed(make(device, sizes.routed)),
      shared_inner(make(device, sizes.shared_inner)),
      shared_inner_gate(make(device, sizes.shared_inner_gate)),
      shared_inner_up(make(device, sizes.shared_inner_up)),
      shared_output(make(device, sizes.shared_output)),
      shared_score(make(device, sizes.shared_score)) {
  const std::span<std::uint32_t> numbers(reinterpret_cast<std::uint32_t*>(identity.contents()),
                                         sizes.identity / sizeof(std::uint32_t));
  std::iota(numbers.begin(), numbers.end(), 0u);
}

}  // namespace moestream::metal
