// Metal's objects as the fake has them. Their GPU is the kernel emulator (../simt.h).
//
// A queue has a thread of its own and runs command buffers in the order of their commits, so that what the host does
// meanwhile really happens meanwhile. Checks are those of Metal's validation layers that this host could break, and some
// that only cost time or bits on a Mac: see fake_encoder.cpp.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../simt.h"
#include "objc_runtime.h"

namespace moestream::fake {

using Unsigned = unsigned long;

// What Apple Silicon asks of memory that a buffer is laid over; ours on Linux has smaller pages, so it is checked here.
inline constexpr std::size_t kPageBytes = 16384;
// Command buffers of a queue that may be alive and unfinished; Metal makes the caller wait for the next one.
inline constexpr long kQueueLimit = 64;

struct Size {
  Unsigned width;
  Unsigned height;
  Unsigned depth;
};

struct String : Object {
  std::string text;
};

struct Error : Object {
  long code = 0;
  std::string text;
};

struct Array : Object {
  std::vector<Object*> items;
  ~Array();
};

struct CompileOptions : Object {
  Unsigned language = 0;
  bool safe_math = false;
};

struct ConstantValues : Object {
  std::vector<emu::FunctionConstant> values;
};

struct Device : Object {};

struct Library : Object {
  std::string file;  // the .metal file that the source says it is
};

struct Function : Object {
  const emu::KernelInfo* kernel = nullptr;
  std::vector<emu::FunctionConstant> constants;
};

struct Pipeline : Object {
  const emu::KernelInfo* kernel = nullptr;
  std::vector<emu::FunctionConstant> constants;
};

struct Buffer : Object {
  std::byte* memory = nullptr;
  std::size_t bytes = 0;
  bool owns = false;
  bool known_mapped = false;
  ~Buffer();
};

struct ResidencyDescriptor : Object {};

struct ResidencySet : Object {
  std::vector<Object*> allocations;
  ~ResidencySet();
};

// What one dispatch does to one buffer.
struct Use {
  const Buffer* buffer;
  std::byte* begin;
  std::byte* end;
  bool written;
  std::uint32_t index;
  // Another dispatch of its group writes here too, perhaps elsewhere: found out when it runs.
  bool watched = false;
};

struct Dispatch {
  emu::Launch launch;
  std::vector<emu::FunctionConstant> constants;
  std::vector<std::shared_ptr<std::vector<std::byte>>> copies;  // what setBytes was given
  std::vector<Use> uses;
  std::size_t group;  // dispatches of one group have no barrier between them
};

struct Queue;

struct CommandBuffer : Object {
  Queue* queue = nullptr;
  std::vector<Dispatch> dispatches;
  std::vector<Object*> retained;
  std::size_t groups = 0;
  bool encoding = false;

  std::mutex mutex;
  std::condition_variable ended;
  Unsigned status = 0;
  long error_code = 0;
  std::string error_text;

  void hold(Object* object);
  ~CommandBuffer();
};

struct Encoder : Object {
  struct Bound {
    Buffer* buffer = nullptr;
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
    bool fresh = false;  // bound since the pipeline was set
  };

  CommandBuffer* commands = nullptr;
  Pipeline* pipeline = nullptr;
  std::array<Bound, emu::kBufferSlots> bound{};
  std::array<Unsigned, emu::kBufferSlots> threadgroup_bytes{};
  std::vector<std::shared_ptr<std::vector<std::byte>>> copies;
  std::size_t group_begin = 0;  // the first dispatch since the last barrier
  bool concurrent = false;
  bool ended = false;
  ~Encoder();
};

// What a queue's thread reads. Its own, because the queue may go with the last command buffer, on that thread.
struct Committed {
  std::mutex mutex;
  std::condition_variable work;
  std::deque<CommandBuffer*> buffers;
  bool stop = false;
};

struct Queue : Object {
  std::shared_ptr<Committed> committed = std::make_shared<Committed>();
  std::vector<Object*> residency_sets;
  std::atomic<long> unfinished{0};
  std::thread thread;

  Queue();
  ~Queue();
};

Object* string_of(const std::string& text);  // autoreleased
Object* error_of(long code, const std::string& text);  // autoreleased

// Each file defines its classes; define_metal calls them once.
void define_metal();
void define_device(const Class& root);
void define_commands(const Class& root);
void define_encoder(const Class& root);

// Runs what was encoded. Throws what the emulator throws, and Misuse for dispatches that meet in memory.
void execute(CommandBuffer& commands);

}  // namespace moestream::fake
