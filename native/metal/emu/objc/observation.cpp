// The process-wide state of observation.h.
#include "observation.h"

namespace moestream::fake {
namespace {

constexpr std::size_t kEventsMax = 1'000'000;

std::mutex log_mutex;
std::vector<std::string>& log_events = *new std::vector<std::string>;  // a queue may outlive statics
bool logging = false;

}  // namespace

Counters& counters() {
  static Counters all;
  return all;
}

Injection& injection() {
  static Injection one;
  return one;
}

void reset_observation(bool log) {
  Counters& all = counters();
  for (std::atomic<long>* each : {&all.created, &all.committed, &all.completed, &all.failed, &all.discarded, &all.waits,
                                  &all.encoders, &all.dispatches, &all.barriers, &all.bindings}) {
    *each = 0;
  }
  Injection& one = injection();
  one.fail_commit = -1;
  one.failure = Failure::kNone;
  one.drop_barrier = -1;
  one.drop_binding = -1;
  one.no_device = false;
  one.refuse_source = false;
  const std::lock_guard lock(log_mutex);
  log_events.clear();
  logging = log;
}

void note(const char* event) {
  const std::lock_guard lock(log_mutex);
  if (logging && log_events.size() < kEventsMax) log_events.emplace_back(event);
}

std::vector<std::string> events() {
  const std::lock_guard lock(log_mutex);
  return log_events;
}

}  // namespace moestream::fake
