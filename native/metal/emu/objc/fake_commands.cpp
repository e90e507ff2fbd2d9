// Queues and command buffers: created, committed once, run in order, waited for.
#include <algorithm>
#include <exception>

#include "fake_metal.h"
#include "observation.h"

namespace moestream::fake {
namespace {

// MTLCommandBufferStatus
constexpr Unsigned kCommitted = 2;
constexpr Unsigned kCompleted = 4;
constexpr Unsigned kFailed = 5;

// MTLCommandBufferError
long error_code(Failure failure) {
  switch (failure) {
    case Failure::kTimeout: return 2;
    case Failure::kOutOfMemory: return 8;
    case Failure::kRemoved: return 11;
    default: return 1;
  }
}

const char* error_text(Failure failure) {
  switch (failure) {
    case Failure::kTimeout: return "Caused GPU Timeout Error (00000002)";
    case Failure::kOutOfMemory: return "Insufficient Memory (00000008)";
    case Failure::kRemoved: return "Device removed (0000000b)";
    default: return "Internal Error (0000000e)";
  }
}

void run(CommandBuffer& commands) {
  Unsigned status = kCompleted;
  if (commands.error_code == 0) {
    try {
      execute(commands);
    } catch (const std::exception& fault) {
      commands.error_code = error_code(Failure::kInternal);
      commands.error_text = fault.what();
    }
  }
  if (commands.error_code != 0) status = kFailed;
  ++(status == kCompleted ? counters().completed : counters().failed);
  --commands.queue->unfinished;
  {
    const std::lock_guard lock(commands.mutex);
    commands.status = status;
  }
  commands.ended.notify_all();
}

void serve(Committed& committed) {
  for (;;) {
    CommandBuffer* next = nullptr;
    {
      std::unique_lock lock(committed.mutex);
      committed.work.wait(lock, [&] { return committed.stop || !committed.buffers.empty(); });
      if (committed.buffers.empty()) return;
      next = committed.buffers.front();
      committed.buffers.pop_front();
    }
    run(*next);
    release(next);
  }
}

Object* new_commands(Queue* queue, Selector) {
  if (queue->unfinished >= kQueueLimit) misuse("more than 64 unfinished command buffers: Metal would wait here");
  CommandBuffer* const commands = made<CommandBuffer>();
  commands->queue = queue;
  retain(queue);
  ++queue->unfinished;
  ++counters().created;
  note("create");
  return autorelease(commands);
}

void commit(CommandBuffer* commands, Selector) {
  if (commands->encoding) misuse("commit of a command buffer whose encoder was not ended");
  if (commands->status != 0) misuse("command buffer committed twice");
  commands->status = kCommitted;
  const long number = counters().committed++;
  note("commit");
  Injection& wanted = injection();
  if (number == wanted.fail_commit) {
    commands->error_code = error_code(wanted.failure);
    commands->error_text = error_text(wanted.failure);
  }
  retain(commands);
  {
    const std::lock_guard lock(commands->queue->committed->mutex);
    commands->queue->committed->buffers.push_back(commands);
  }
  commands->queue->committed->work.notify_one();
}

void wait_until_completed(CommandBuffer* commands, Selector) {
  std::unique_lock lock(commands->mutex);
  if (commands->status == 0) misuse("waitUntilCompleted of a command buffer that was not committed: no end to it");
  ++counters().waits;
  note("wait");
  commands->ended.wait(lock, [&] { return commands->status >= kCompleted; });
}

Object* new_encoder(CommandBuffer* commands, Selector, Unsigned type) {
  if (commands->status != 0) misuse("encoding into a command buffer that was committed");
  if (commands->encoding) misuse("a second encoder while the first was not ended");
  commands->encoding = true;
  Encoder* const encoder = made<Encoder>();
  encoder->commands = commands;
  retain(commands);
  encoder->concurrent = type == 1;
  encoder->group_begin = commands->dispatches.size();
  ++commands->groups;
  ++counters().encoders;
  return autorelease(encoder);
}

}  // namespace

void CommandBuffer::hold(Object* object) {
  if (std::ranges::find(retained, object) == retained.end()) retained.push_back(retain(object));
}

CommandBuffer::~CommandBuffer() {
  if (status == 0) {
    ++counters().discarded;
    --queue->unfinished;
    note("discard");
  }
  for (Object* each : retained) release(each);
  release(queue);
}

Queue::Queue() : thread([mine = committed] { serve(*mine); }) {}

Queue::~Queue() {
  {
    const std::lock_guard lock(committed->mutex);
    committed->stop = true;
  }
  committed->work.notify_all();
  // The last reference may go with the last command buffer, on the queue's own thread.
  if (thread.get_id() == std::this_thread::get_id()) {
    thread.detach();
  } else {
    thread.join();
  }
  for (Object* each : residency_sets) release(each);
}

void define_commands(const Class& root) {
  Class& queue = define<Queue>("MTLFakeQueue", &root);
  method(queue, "commandBuffer", &new_commands);
  method(queue, "addResidencySet:",
         [](Queue* self, Selector, Object* set) { self->residency_sets.push_back(retain(set)); });

  Class& commands = define<CommandBuffer>("MTLFakeCommandBuffer", &root);
  method(commands, "computeCommandEncoderWithDispatchType:", &new_encoder);
  method(commands, "commit", &commit);
  method(commands, "waitUntilCompleted", &wait_until_completed);
  method(commands, "status", [](CommandBuffer* self, Selector) {
    const std::lock_guard lock(self->mutex);
    return self->status;
  });
  method(commands, "error", [](CommandBuffer* self, Selector) -> Object* {
    return self->error_code == 0 ? nullptr : error_of(self->error_code, self->error_text);
  });
}

}  // namespace moestream::fake
