// What tests ask of the fake, and what they make it do: counts, the order of events, and failures on demand.
//
// Of the process, because the engine's backend lives in a worker thread of the test that looks.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace moestream::fake {

struct Counters {
  std::atomic<long> created{0};
  std::atomic<long> committed{0};
  std::atomic<long> completed{0};
  std::atomic<long> failed{0};
  std::atomic<long> discarded{0};  // released without a commit
  std::atomic<long> waits{0};
  std::atomic<long> encoders{0};
  std::atomic<long> dispatches{0};
  std::atomic<long> barriers{0};
  std::atomic<long> bindings{0};
  std::atomic<long> resident_bytes{0};
};

Counters& counters();

enum class Failure { kNone, kInternal, kTimeout, kOutOfMemory, kRemoved };

struct Injection {
  // The commit that fails, counted from 0 since `reset`; -1 for none.
  std::atomic<long> fail_commit{-1};
  std::atomic<Failure> failure{Failure::kNone};
  // The barrier that is left out, and the buffer binding that is not made, counted alike.
  std::atomic<long> drop_barrier{-1};
  std::atomic<long> drop_binding{-1};
  std::atomic<bool> no_device{false};
  std::atomic<bool> refuse_source{false};
};

Injection& injection();

// Sets counters, injection and the log back, and starts or stops the log.
void reset_observation(bool log);

// One word per event: "commit", "wait", ... in order, while the log is on and short of a million.
void note(const char* event);
std::vector<std::string> events();

}  // namespace moestream::fake
