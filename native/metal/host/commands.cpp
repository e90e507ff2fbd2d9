// Committing and waiting.
#include "commands.h"

#include <utility>

#include "gpu_error.h"

namespace moestream::metal {

Commands::Commands(CommandBuffer buffer, SubmissionCounts& counts)
    : buffer_(std::move(buffer)), encoder_(buffer_.concurrent_encoder()), counts_(counts) {}

Commands::~Commands() {
  if (encoder_.has_value()) encoder_->end();
}

Commands::Commands(Commands&& other) noexcept
    : buffer_(std::move(other.buffer_)), encoder_(std::move(other.encoder_)), counts_(other.counts_) {
  other.encoder_.reset();
}

Submission::~Submission() { drain(); }

void Submission::commit(Commands commands) {
  commands.encoder_->end();
  commands.encoder_.reset();
  commands.buffer_.commit();
  ++counts_.command_buffers;
  under_way_.push_back(std::move(commands.buffer_));
}

void Submission::wait() {
  if (under_way_.empty()) return;
  // A queue runs its buffers in the order of their commits, so the last one ends last.
  under_way_.back().wait_until_completed();
  ++counts_.waits;
  const std::vector<CommandBuffer> ended = std::exchange(under_way_, {});
  for (const CommandBuffer& each : ended) each.check();
}

void Submission::drain() noexcept {
  for (const CommandBuffer& each : under_way_) each.wait_until_completed();
  under_way_.clear();
}

void Dispatch::refuse_threads(std::size_t threads) const {
  throw GpuError(kGpuUnavailable, "a kernel needs " + std::to_string(threads) + " threads together, this GPU runs " +
                                      std::to_string(pipeline_.max_threads()));
}

}  // namespace moestream::metal
