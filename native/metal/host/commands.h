// Command buffers on their way to the GPU: encoded, committed in order, waited for once.
//
// `begin` gives a buffer to encode into and `commit` sends it off: so work can be prepared while something else is still
// missing, and whoever lets go of a buffer without a commit has undone it. A commit never waits; `wait` waits for
// everything committed and throws what any of it failed with. Work is committed only when all the bytes that it reads are
// in memory: the system ends command buffers that wait for long, and takes the process's other work with them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "mapped_memory.h"
#include "metal.h"

namespace moestream::metal {

// What went to the GPU since the backend was made.
struct SubmissionCounts {
  std::uint64_t command_buffers = 0;
  std::uint64_t dispatches = 0;
  std::uint64_t waits = 0;
};

// A command buffer with its one encoder.
class Commands {
 public:
  Commands(CommandBuffer buffer, SubmissionCounts& counts);
  // An encoder that is let go of must have ended.
  ~Commands();
  Commands(Commands&& other) noexcept;
  Commands& operator=(Commands&&) = delete;

  const Encoder& encoder() const { return *encoder_; }
  // What was encoded before is finished, and seen by what is encoded after.
  void barrier() const { encoder_->barrier(); }
  void count_dispatch() { ++counts_.dispatches; }

 private:
  friend class Submission;

  CommandBuffer buffer_;
  std::optional<Encoder> encoder_;
  SubmissionCounts& counts_;
};

class Submission {
 public:
  explicit Submission(Queue queue) : queue_(std::move(queue)) {}
  // The GPU must have let go of the backend's memory before that is freed.
  ~Submission();

  Commands begin() { return Commands(queue_.command_buffer(), counts_); }
  void commit(Commands commands);
  void keep_resident(const ResidencySet& set) { queue_.add(set); }
  // Waits for all that was committed. Throws GpuError for the first that failed.
  void wait();
  // As `wait`, for one who is leaving and has no use for errors.
  void drain() noexcept;
  bool idle() const { return under_way_.empty(); }
  const SubmissionCounts& counts() const { return counts_; }

 private:
  Queue queue_;
  SubmissionCounts counts_;
  std::vector<CommandBuffer> under_way_;
};

// Binds and runs one kernel.
class Dispatch {
 public:
  Dispatch(Commands& commands, const Pipeline& pipeline) : commands_(commands), pipeline_(pipeline) {
    commands_.encoder().pipeline(pipeline);
  }

  Dispatch& buffer(unsigned index, const Place& place) {
    commands_.encoder().buffer(*place.buffer, place.offset, index);
    return *this;
  }

  template <class Arguments>
  Dispatch& arguments(unsigned index, const Arguments& values) {
    commands_.encoder().bytes(&values, sizeof(Arguments), index);
    return *this;
  }

  // Throws GpuError on a device that does not run so many threads of this kernel together.
  void run(Size groups, std::size_t threads) {
    if (threads > pipeline_.max_threads()) refuse_threads(threads);
    commands_.encoder().dispatch(groups, {threads, 1, 1});
    commands_.count_dispatch();
  }

 private:
  [[noreturn]] void refuse_threads(std::size_t threads) const;

  Commands& commands_;
  const Pipeline& pipeline_;
};

}  // namespace moestream::metal
