// What stands between the products, at the sizes of a model of 397 billion parameters: hidden 4096, 32 heads of 256 with
// two key heads, 64 DeltaNet heads of 128, 512 experts of which 10 are chosen. Values are random or zero: these kernels
// take the same time for all.
#include <memory>

#include "../metal/checks/material.h"
#include "speed.h"

namespace moestream::cuda {
namespace {

constexpr std::size_t kHidden = 4096;

// Device memory for a dispatch's buffers, zeros or random floats; arguments are bytes.
class Bench {
 public:
  explicit Bench(Driver& driver) : driver_(driver) {}

  void floats(std::size_t index, std::size_t count) {
    gpu::Random random(81 + index);
    const std::vector<float> values = random.numbers(count);
    bytes(index, values.data(), values.size() * sizeof(float));
  }

  void zeros(std::size_t index, std::size_t count) {
    const std::vector<std::uint8_t> values(count);
    bytes(index, values.data(), count);
  }

  void bytes(std::size_t index, const void* from, std::size_t count) {
    memory_.push_back(std::make_unique<Memory>(driver_, count));
    driver_.upload(memory_.back()->address(), from, count);
    arguments_.buffers[index] = memory_.back()->address();
  }

  // The same memory at a second index.
  void again(std::size_t index, std::size_t first) { arguments_.buffers[index] = arguments_.buffers[first]; }

  Speed time(Card& card, const std::string& kernel, const std::string& shape, double moved,
             const std::uint32_t (&groups)[3], std::uint32_t threads) {
    constexpr std::size_t kDispatches = 20;
    void* const function = card.function(kernel);
    const double microseconds =
        time_of(driver_, kDispatches, [&](std::size_t) { driver_.launch(function, groups, threads, &arguments_); });
    return {kernel, shape, microseconds, moved, 0, -1};
  }

 private:
  Driver& driver_;
  std::vector<std::unique_ptr<Memory>> memory_;
  Arguments arguments_;
};

Speed norm(Driver& driver, Card& card) {
  Bench bench(driver);
  for (std::size_t i = 0; i < 4; ++i) bench.floats(i, kHidden);
  const gpu::NormArguments arguments{kHidden, 1, 1e-6f, 0};
  bench.bytes(4, &arguments, sizeof arguments);
  return bench.time(card, "rms_norm", "4096 and an addend", 5.0 * kHidden * 4, {1, 1, 1}, gpu::kRowThreads);
}

Speed combine(Driver& driver, Card& card) {
  constexpr std::size_t kChoices = 10;
  Bench bench(driver);
  bench.floats(0, kChoices * kHidden);
  bench.floats(1, kChoices);
  bench.floats(2, kHidden);
  bench.floats(3, 1);
  for (std::size_t i = 4; i < 7; ++i) bench.floats(i, kHidden);
  const gpu::CombineArguments arguments{kHidden, kChoices, 1, 1, 1e-6f, {}};
  bench.bytes(7, &arguments, sizeof arguments);
  return bench.time(card, "combine", "10 experts of 4096", (kChoices + 5.0) * kHidden * 4, {1, 1, 1}, gpu::kRowThreads);
}

Speed scores(Driver& driver, Card& card) {
  constexpr std::size_t kExperts = 512;
  Bench bench(driver);
  bench.floats(0, kExperts * kHidden);
  bench.floats(1, kHidden);
  bench.floats(2, kExperts);
  const gpu::RouterArguments arguments{kExperts, kHidden, 10, 0};
  bench.bytes(3, &arguments, sizeof arguments);
  return bench.time(card, "router_scores_f32", "512 x 4096 (in the cache)", double{kExperts} * kHidden * 4,
                    {kExperts / gpu::kRouterExperts, 1, 1}, gpu::kRouterThreads);
}

Speed choose(Driver& driver, Card& card) {
  Bench bench(driver);
  bench.floats(0, 512);
  bench.floats(1, 10);
  bench.floats(2, 10);
  const gpu::RouterArguments arguments{512, kHidden, 10, 0};
  bench.bytes(3, &arguments, sizeof arguments);
  return bench.time(card, "router_choose", "10 of 512", 512 * 4, {1, 1, 1}, gpu::kSimdWidth);
}

Speed attention(Driver& driver, Card& card, std::size_t positions) {
  constexpr std::size_t kHeads = 32;
  constexpr std::size_t kDim = 256;
  Bench bench(driver);
  bench.floats(0, kHeads * 2 * kDim);
  bench.zeros(1, 2 * positions * kDim * 2);
  bench.zeros(2, 2 * positions * kDim * 2);
  const gpu::RowEntry row{0, static_cast<gpu::uint>(positions - 1), 0, 0};
  bench.bytes(3, &row, sizeof row);
  bench.zeros(4, kHeads * gpu::kMaxAttentionSplits * (kDim + 2) * 4);
  gpu::AttentionArguments arguments{};
  arguments.head_stride = positions * kDim * 2;
  arguments.sequence_stride = 2 * arguments.head_stride;
  arguments.row_bytes = kDim * 2;
  arguments.heads = kHeads;
  arguments.kv_heads = 2;
  arguments.head_dim = kDim;
  arguments.query_head_width = 2 * kDim;
  arguments.rotary_dims = 64;
  arguments.gated = 1;
  arguments.epsilon = 1e-6f;
  arguments.scale = 0.0625f;
  bench.bytes(5, &arguments, sizeof arguments);
  const std::uint32_t splits = gpu::attention_split_count(static_cast<gpu::uint>(positions));
  return bench.time(card, "attention_f16", std::to_string(positions) + " positions",
                    2.0 * 2 * static_cast<double>(positions) * kDim * 2, {kHeads, 1, splits}, gpu::kAttentionThreads);
}

Speed convolution(Driver& driver, Card& card) {
  constexpr std::size_t kChannels = 12288;
  Bench bench(driver);
  bench.floats(0, 4 * kChannels);
  bench.floats(1, 3 * kChannels);
  bench.floats(2, kChannels);
  const gpu::ConvolveArguments arguments{kChannels, 4, 0, 1};
  bench.bytes(3, &arguments, sizeof arguments);
  return bench.time(card, "convolve", "12288 channels", 12.0 * kChannels * 4, {kChannels / 256, 1, 1},
                    gpu::kElementThreads);
}

Speed delta(Driver& driver, Card& card, const std::string& kernel, std::size_t rows) {
  constexpr std::size_t kHeads = 64;
  constexpr std::size_t kKeyHeads = 16;
  constexpr std::size_t kDim = 128;
  constexpr std::size_t kChannels = 2 * kKeyHeads * kDim + kHeads * kDim;
  Bench bench(driver);
  bench.floats(0, kHeads * kDim * kDim);
  bench.floats(1, rows * kChannels);
  bench.floats(2, rows * kHeads);
  bench.floats(3, rows * kHeads);
  // A decay rate of zero keeps everything: states stay numbers however often the dispatch is repeated.
  bench.zeros(4, kHeads * 4);
  bench.floats(5, kHeads);
  bench.floats(6, kDim);
  bench.floats(7, rows * kHeads * kDim);
  bench.floats(8, rows * kHeads * kDim);
  const gpu::DeltaArguments arguments{kKeyHeads, kHeads, kDim, kChannels, 1, 0, 0, static_cast<gpu::uint>(rows),
                                      1e-6f, 0};
  bench.bytes(9, &arguments, sizeof arguments);
  const double state_bytes = 2.0 * kHeads * kDim * kDim * 4;
  return bench.time(card, kernel, std::to_string(rows) + " rows of 64 heads of 128",
                    state_bytes + static_cast<double>(rows) * (kChannels + 2 * kHeads * kDim) * 4, {kHeads, 1, 1},
                    kDim * gpu::kDeltaParts);
}

}  // namespace

void add_layer_cases(std::vector<SpeedCase>& cases) {
  cases.push_back({"rms_norm", norm});
  cases.push_back({"combine", combine});
  cases.push_back({"router_scores_f32", scores});
  cases.push_back({"router_choose", choose});
  for (const std::size_t positions : {1024, 16384, 262144}) {
    cases.push_back({"attention_f16", [=](Driver& driver, Card& card) { return attention(driver, card, positions); }});
  }
  cases.push_back({"convolve", convolution});
  for (const std::size_t rows : {1, 64}) {
    cases.push_back({"delta_step", [=](Driver& driver, Card& card) { return delta(driver, card, "delta_step", rows); }});
  }
  cases.push_back({"delta_chunk", [](Driver& driver, Card& card) { return delta(driver, card, "delta_chunk", 64); }});
}

}  // namespace moestream::cuda
