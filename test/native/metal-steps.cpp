// The Metal backend on the emulated GPU, without Node: prefill and decode, experts that arrive one by one, saved states,
// steps that are given up, command buffers that fail, and a backend that goes while the GPU works. For the sanitizers: the
// host, the fake Metal with its queue's thread, and the kernels, all in one program.
#include <cmath>
#include <memory>
#include <vector>

#include "../../native/metal/emu/objc/objc_runtime.h"
#include "../../native/metal/emu/objc/observation.h"
#include "../../native/metal/host/backend.h"
#include "../../native/metal/host/gpu_error.h"
#include "check.h"
#include "step_model.h"

namespace {

using namespace moestream;
using cpu::KvType;
using cpu::TensorType;
using metal::GpuError;
using test::check;
using test::same;
using test::StepExperts;
using test::throws;
using Model = test::StepModel<metal::Backend>;

constexpr std::size_t kTokens = 20;
constexpr std::size_t kLayers = 3;

struct Kind {
  StepExperts experts;
  KvType kv_type;
};

// Blocks start at even bytes; affine matrices at any.
constexpr Kind kKinds[] = {{{TensorType::IQ3_XXS, TensorType::Q8_0, 2}, KvType::kF16},
                           {{cpu::affine_type(3, 64), cpu::affine_type(6, 32), 1}, KvType::kQ8_0},
                           {{cpu::affine_type(4, 128), cpu::affine_type(8, 64), 3}, KvType::kF32}};

cpu::ModelConfig config_of(const Kind& kind) { return test::step_config(cpu::Precision::kExact, kind.kv_type, 1); }

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    size += std::pow(double{b[i]}, 2);
  }
  return a.size() == b.size() && difference <= 1e-8 * size;
}

std::vector<cpu::Row> rows_of(const Model& model, std::size_t from, std::size_t count, std::size_t sequence) {
  std::vector<cpu::Row> rows;
  for (std::size_t p = from; p < from + count; ++p) rows.push_back({model.token_at(p), p, sequence});
  return rows;
}

void chunks_and_states(const Kind& kind) {
  const metal::Backend::Scope scope;
  Model model(config_of(kind), kind.experts);
  const std::vector<float> expected = model.feed(0, 0, kTokens, 1);
  model.backend.reset_sequence(0);
  check(close(model.feed(0, 0, kTokens, 7), expected), "chunks give the numbers of rows one by one");

  constexpr std::size_t kHalf = 8;
  model.backend.reset_sequence(0);
  model.feed(0, 0, kHalf, 4);
  std::vector<std::uint8_t> saved(model.backend.sequence_bytes(kHalf));
  model.backend.save_sequence(0, saved);
  model.backend.copy_sequence(0, 1);
  model.backend.restore_sequence(2, saved);
  const std::vector<float> rest = model.feed(0, kHalf, kTokens, 6);
  for (const std::size_t sequence : {1, 2}) {
    check(same(model.feed(sequence, kHalf, kTokens, 6), rest), "copies and restored states go on alike");
  }
}

// As the scheduler does it: what is here is sent off, then each arrival; a slot may be wanted back in between.
std::vector<float> step_with_arrivals(Model& model, const std::vector<cpu::Row>& rows) {
  model.begin(rows);
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    model.backend.mix(layer);
    model.backend.shared(layer);
    const std::set<std::size_t> chosen = model.chosen(rows.size());
    std::size_t arrived = 0;
    for (auto each = chosen.rbegin(); each != chosen.rend(); ++each) {
      model.backend.flush();
      model.expert(layer, *each);
      if (++arrived == 2) model.backend.finish();
    }
    model.backend.combine(layer);
  }
  return model.logits(rows.size());
}

void arrivals(const Kind& kind) {
  const metal::Backend::Scope scope;
  Model model(config_of(kind), kind.experts);
  for (const std::size_t count : {1, 9}) {
    model.backend.reset_sequence(0);
    const std::vector<cpu::Row> rows = rows_of(model, 0, count, 0);
    const std::vector<float> expected = model.step(rows);
    model.backend.reset_sequence(0);
    check(same(step_with_arrivals(model, rows), expected), "the order of arrivals does not change a bit");
  }
}

void steps_given_up(const Kind& kind) {
  const metal::Backend::Scope scope;
  Model model(config_of(kind), kind.experts);
  const std::vector<cpu::Row> rows = rows_of(model, 0, 5, 0);
  const std::vector<float> expected = model.step(rows);
  for (const bool encoded : {false, true}) {
    model.backend.reset_sequence(0);
    model.begin(rows);
    model.backend.mix(0);
    model.backend.shared(0);
    model.expert(0, *model.chosen(rows.size()).begin());
    if (encoded) model.backend.flush();
    model.backend.abandon();
    check(throws<std::logic_error>([&] { model.begin(rows_of(model, 5, 1, 0)); }), "half a step is not gone on with");
  }
  for (const fake::Failure failure : {fake::Failure::kInternal, fake::Failure::kTimeout, fake::Failure::kRemoved}) {
    for (const long commit : {0, 2, 4}) {
      model.backend.reset_sequence(0);
      fake::reset_observation(false);
      fake::injection().failure = failure;
      fake::injection().fail_commit = commit;
      check(throws<GpuError>([&] { model.step(rows); }), "a command buffer that fails ends the step");
      fake::reset_observation(false);
      model.backend.reset_sequence(0);
      check(same(model.step(rows), expected), "the step after a failure is right");
    }
  }
}

void gone_while_the_gpu_works(const Kind& kind) {
  const metal::Backend::Scope scope;
  auto model = std::make_unique<Model>(config_of(kind), kind.experts);
  model->begin(rows_of(*model, 0, 12, 1));
  model.reset();
  model = std::make_unique<Model>(config_of(kind), kind.experts);
  model->begin(rows_of(*model, 0, 12, 1));
  model->backend.mix(0);
  model->expert(0, *model->chosen(12).begin());
  model->backend.flush();
  model.reset();
}

void nothing_is_left() {
  for (const auto& [name, count] : fake::live_objects()) {
    // The device is the system's.
    if (name == "MTLFakeDevice" || count == 0) continue;
    std::printf("%ld of %s\n", count, name.c_str());
    check(false, "every object is released");
  }
}

}  // namespace

int main() {
  for (const Kind& kind : kKinds) {
    chunks_and_states(kind);
    arrivals(kind);
    steps_given_up(kind);
    gone_while_the_gpu_works(kind);
  }
  nothing_is_left();
  return test::result("metal-steps");
}
