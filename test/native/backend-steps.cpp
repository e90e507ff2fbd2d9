// The whole forward pass on a small random model: chunks, threads, neighbours in a batch, copies and saved states give
// the same bits as one row at a time; damaged states are refused. For the sanitizers, which see what a right answer hides.
#include <cmath>
#include <vector>

#include "../../native/cpu/backend.h"
#include "../../native/cpu/saved_sequence.h"
#include "check.h"
#include "step_model.h"

namespace {

using namespace moestream::cpu;
using moestream::test::check;
using moestream::test::same;
using moestream::test::step_config;
using moestream::test::throws;
using Model = moestream::test::StepModel<Backend>;

// The widths of the fast formats; experts of a type with blocks of 256, and one with blocks of 32, at an odd byte.
constexpr moestream::test::StepExperts kExperts{TensorType::IQ3_XXS, TensorType::Q8_0, 1};

constexpr std::size_t kTokens = 24;

std::vector<float> chunks_and_threads(Precision precision, KvType kv_type) {
  Model plain(step_config(precision, kv_type, 1), kExperts);
  const std::vector<float> expected = plain.feed(0, 0, kTokens, 1);
  bool finite = true;
  for (const float each : expected) finite = finite && std::isfinite(each);
  check(finite, "logits are numbers");
  for (const std::size_t threads : {1, 3}) {
    Model model(step_config(precision, kv_type, threads), kExperts);
    for (const std::size_t chunk : {5, 16}) {
      model.backend.reset_sequence(1);
      check(same(model.feed(1, 0, kTokens, chunk), expected), "chunks and threads do not change a bit");
    }
  }
  return expected;
}

void neighbours(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(step_config(precision, kv_type, 3), kExperts);
  // Sequence 0 has a prompt of five rows while sequence 2 decodes.
  std::vector<float> first;
  for (std::size_t p = 0; p < 4; ++p) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < 5; ++i) rows.push_back({model.token_at(5 * p + i), 5 * p + i, 0});
    rows.push_back({model.token_at(p), p, 2});
    const std::vector<float> both = model.step(rows);
    const std::size_t own = 5 * (expected.size() / kTokens);
    first.insert(first.end(), both.begin(), both.begin() + static_cast<std::ptrdiff_t>(own));
  }
  check(same(first, {expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(first.size())}),
        "neighbours do not change a bit");
}

void states(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(step_config(precision, kv_type, 3), kExperts);
  constexpr std::size_t kHalf = 10;
  model.feed(0, 0, kHalf, 4);
  std::vector<std::uint8_t> saved(model.backend.sequence_bytes(kHalf));
  check(model.backend.save_sequence(0, saved) == saved.size(), "a state has the bytes that were foretold");
  check(throws<std::length_error>([&] { model.backend.save_sequence(0, std::span(saved).first(saved.size() - 1)); }),
        "a state does not go into less");
  model.backend.copy_sequence(0, 1);
  model.backend.restore_sequence(2, saved);
  const std::vector<float> rest(expected.begin() + static_cast<std::ptrdiff_t>(expected.size() / kTokens * kHalf),
                                expected.end());
  for (const std::size_t sequence : {0, 1, 2}) {
    check(same(model.feed(sequence, kHalf, kTokens, 6), rest), "copies and restored states go on alike");
  }
  for (std::size_t at = 0; at < saved.size(); at += 1 + saved.size() / 97) {
    std::vector<std::uint8_t> damaged = saved;
    damaged[at] ^= 0x40;
    check(throws<StateRefused>([&] { model.backend.restore_sequence(1, damaged); }), "a damaged state is refused");
    damaged.resize(at);
    check(throws<StateRefused>([&] { model.backend.restore_sequence(1, damaged); }), "a state cut off is refused");
  }
}

void a_step_that_ends_halfway(Precision precision, KvType kv_type, const std::vector<float>& expected) {
  Model model(step_config(precision, kv_type, 3), kExperts);
  model.feed(0, 0, 3, 3);
  check(throws<std::logic_error>([&] { model.backend.begin(1); }), "a position is not computed twice");
  model.backend.reset_sequence(0);
  model.backend.begin(3);
  model.backend.mix(0);
  check(throws<std::logic_error>([&] { model.backend.combine(0); }), "no expert is left out");
  check(throws<std::logic_error>([&] { model.backend.copy_sequence(0, 1); }), "half a step is not copied");
  check(throws<std::logic_error>([&] { model.backend.expert(0, 0, 0, {{.data = ~std::size_t{0}}, {.data = 0}, {.data = 0}}); }), "a slab has an end");
  model.backend.reset_sequence(0);
  check(same(model.feed(0, 0, kTokens, 7), expected), "a sequence that was reset is new");
}

}  // namespace

int main() {
  for (const Precision precision : {Precision::kExact, Precision::kFast}) {
    for (const KvType kv_type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
      const std::vector<float> expected = chunks_and_threads(precision, kv_type);
      neighbours(precision, kv_type, expected);
      states(precision, kv_type, expected);
      a_step_that_ends_halfway(precision, kv_type, expected);
    }
  }
  return moestream::test::result("backend-steps");
}
