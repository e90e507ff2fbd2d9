// Metal's classes, as far as the backend uses them, with typed methods.
//
// Each wraps one object and sends the messages of Apple's documentation; the numbers below are the constants of Apple's
// headers. What returns an error object throws GpuError with its words. Needs macOS 14 (Metal 3.1); what is newer is
// asked for with objc::responds_to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "objc.h"

namespace moestream::metal {

// MTLSize; passed by value as the methods take it.
struct Size {
  objc::Unsigned width = 1;
  objc::Unsigned height = 1;
  objc::Unsigned depth = 1;
};

inline constexpr objc::Unsigned kLanguage31 = (3ul << 16) + 1;
inline constexpr objc::Unsigned kLanguage40 = 4ul << 16;

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(objc::Owned object) : object_(std::move(object)) {}

  objc::Id id() const { return object_.get(); }
  std::byte* contents() const;
  std::size_t bytes() const;

 private:
  objc::Owned object_;
};

// One value for a function constant of a kernel.
struct Constant {
  enum class Type : objc::Unsigned { kInt = 29, kUnsigned = 33, kShort = 37, kUnsignedShort = 41, kBool = 53 };
  Type type = Type::kUnsigned;
  unsigned index = 0;
  std::uint32_t value = 0;

  bool operator==(const Constant&) const = default;
};

class Pipeline {
 public:
  explicit Pipeline(objc::Owned object);

  objc::Id id() const { return object_.get(); }
  std::size_t max_threads() const { return max_threads_; }

 private:
  objc::Owned object_;
  std::size_t max_threads_;
};

class Library {
 public:
  explicit Library(objc::Owned object) : object_(std::move(object)) {}

  std::vector<std::string> functions() const;
  // Owned function object; throws GpuError when there is no such function.
  objc::Owned function(const std::string& name, std::span<const Constant> constants) const;

 private:
  objc::Owned object_;
};

// A compute encoder whose dispatches may run at the same time: whoever needs another's result calls `barrier` between.
class Encoder {
 public:
  explicit Encoder(objc::Owned object) : object_(std::move(object)) {}

  void pipeline(const Pipeline& state) const;
  void buffer(const Buffer& buffer, std::size_t offset, unsigned index) const;
  void bytes(const void* data, std::size_t size, unsigned index) const;
  void threadgroup_memory(std::size_t size, unsigned index) const;
  void dispatch(Size groups, Size threads) const;
  void barrier() const;
  void end() const;

 private:
  objc::Owned object_;
};

class CommandBuffer {
 public:
  CommandBuffer() = default;
  explicit CommandBuffer(objc::Owned object) : object_(std::move(object)) {}

  explicit operator bool() const { return static_cast<bool>(object_); }
  Encoder concurrent_encoder() const;
  void commit() const;
  void wait_until_completed() const;
  // Throws GpuError when the GPU did not complete it. Only after waiting.
  void check() const;

 private:
  objc::Owned object_;
};

// Keeps memory resident between command buffers; macOS 15 and later.
class ResidencySet {
 public:
  ResidencySet() = default;
  explicit ResidencySet(objc::Owned object) : object_(std::move(object)) {}

  explicit operator bool() const { return static_cast<bool>(object_); }
  objc::Id id() const { return object_.get(); }
  void add(const Buffer& buffer) const;
  void commit_and_request() const;

 private:
  objc::Owned object_;
};

class Queue {
 public:
  explicit Queue(objc::Owned object) : object_(std::move(object)) {}

  CommandBuffer command_buffer() const;
  void add(const ResidencySet& set) const;

 private:
  objc::Owned object_;
};

class Device {
 public:
  // Throws GpuError when there is none.
  static Device system_default();

  std::string name() const;
  bool unified_memory() const;
  // Whether matrix products have units of their own (M5 and later).
  bool tensor_units() const;
  std::size_t max_buffer_bytes() const;
  std::size_t working_set_bytes() const;
  Queue queue() const;
  Buffer buffer(std::size_t bytes) const;
  // The memory stays the caller's: whole pages that outlive the buffer.
  Buffer buffer_over(void* memory, std::size_t bytes) const;
  Library library(const std::string& source, objc::Unsigned language) const;
  Pipeline pipeline(const objc::Owned& function) const;
  // An empty set where the system has none.
  ResidencySet residency_set() const;

 private:
  explicit Device(objc::Owned object) : object_(std::move(object)) {}

  objc::Owned object_;
};

}  // namespace moestream::metal
