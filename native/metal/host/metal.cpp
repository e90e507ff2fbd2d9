// The messages behind metal.h. Selectors and argument types are those of Apple's documentation.
#include "metal.h"

#include "gpu_error.h"

namespace moestream::metal {
namespace {

using objc::Id;
using objc::Method;
using objc::Owned;
using objc::Unsigned;

constexpr Unsigned kStorageShared = 0;      // MTLResourceStorageModeShared, hazards tracked between encoders
constexpr Unsigned kDispatchConcurrent = 1; // MTLDispatchTypeConcurrent
constexpr Unsigned kScopeBuffers = 1;       // MTLBarrierScopeBuffers
constexpr Unsigned kStatusCompleted = 4;    // MTLCommandBufferStatusCompleted
constexpr Unsigned kSimdWidth = 32;

// MTLCommandBufferError
constexpr long kErrorTimeout = 2;
constexpr long kErrorAccessRevoked = 4;
constexpr long kErrorOutOfMemory = 8;
constexpr long kErrorDeviceRemoved = 11;

GpuError command_error(Id error) {
  const std::string words = objc::description_of(error);
  const std::string because = words.empty() ? "without a word" : words;
  switch (objc::code_of(error)) {
    case kErrorTimeout: return {kGpuTimeout, "the system ended the GPU's work because it took too long: " + because};
    case kErrorDeviceRemoved:
    case kErrorAccessRevoked: return {kGpuLost, "the GPU is gone: " + because};
    case kErrorOutOfMemory: return {kGpuFailed, "the GPU has no memory left: " + because};
    default: return {kGpuFailed, "the GPU failed: " + because};
  }
}

Owned required(Id object, const std::string& what, Id error = nullptr) {
  if (object != nullptr) return Owned(object);
  const std::string words = objc::description_of(error);
  throw GpuError(kGpuUnavailable, words.empty() ? what : what + ": " + words);
}

// Products are rounded as they are written: with fast math the router could choose other experts than the CPU.
void ask_for_exact_math(Id options) {
  static const Method<void(long)> set_mode("setMathMode:");           // macOS 15
  static const Method<void(bool)> set_fast("setFastMathEnabled:");    // before
  constexpr long kSafe = 0;  // MTLMathModeSafe
  if (objc::responds_to(options, "setMathMode:")) {
    set_mode(options, kSafe);
  } else {
    set_fast(options, false);
  }
}

}  // namespace

std::byte* Buffer::contents() const {
  static const Method<void*()> message("contents");
  return static_cast<std::byte*>(message(id()));
}

std::size_t Buffer::bytes() const {
  static const Method<Unsigned()> message("length");
  return message(id());
}

Pipeline::Pipeline(Owned object) : object_(std::move(object)) {
  static const Method<Unsigned()> most("maxTotalThreadsPerThreadgroup");
  static const Method<Unsigned()> width("threadExecutionWidth");
  max_threads_ = most(id());
  if (width(id()) != kSimdWidth) {
    throw GpuError(kGpuUnavailable, "the kernels need simdgroups of " + std::to_string(kSimdWidth) + " threads, this GPU has " +
                                        std::to_string(width(id())));
  }
}

std::vector<std::string> Library::functions() const {
  static const Method<Id()> names("functionNames");
  static const Method<Unsigned()> count("count");
  static const Method<Id(Unsigned)> at("objectAtIndex:");
  const Id list = names(object_.get());
  std::vector<std::string> found;
  for (Unsigned i = 0; i < count(list); ++i) found.push_back(objc::text_of(at(list, i)));
  return found;
}

Owned Library::function(const std::string& name, std::span<const Constant> constants) const {
  static const Method<void(const void*, Unsigned, Unsigned)> set("setConstantValue:type:atIndex:");
  static const Method<Id(Id, Id, Id*)> message("newFunctionWithName:constantValues:error:");
  const Owned values = required(objc::make("MTLFunctionConstantValues"), "Metal has no function constants");
  for (const Constant& each : constants) {
    // Little endian: the low bytes are the narrower value.
    set(values.get(), &each.value, static_cast<Unsigned>(each.type), each.index);
  }
  Id error = nullptr;
  const Id found = message(object_.get(), objc::string_of(name), values.get(), &error);
  return required(found, "the GPU library has no kernel " + name, error);
}

void Encoder::pipeline(const Pipeline& state) const {
  static const Method<void(Id)> message("setComputePipelineState:");
  message(object_.get(), state.id());
}

void Encoder::buffer(const Buffer& buffer, std::size_t offset, unsigned index) const {
  static const Method<void(Id, Unsigned, Unsigned)> message("setBuffer:offset:atIndex:");
  message(object_.get(), buffer.id(), offset, index);
}

void Encoder::bytes(const void* data, std::size_t size, unsigned index) const {
  static const Method<void(const void*, Unsigned, Unsigned)> message("setBytes:length:atIndex:");
  message(object_.get(), data, size, index);
}

void Encoder::threadgroup_memory(std::size_t size, unsigned index) const {
  static const Method<void(Unsigned, Unsigned)> message("setThreadgroupMemoryLength:atIndex:");
  message(object_.get(), size, index);
}

void Encoder::dispatch(Size groups, Size threads) const {
  static const Method<void(Size, Size)> message("dispatchThreadgroups:threadsPerThreadgroup:");
  message(object_.get(), groups, threads);
}

void Encoder::barrier() const {
  static const Method<void(Unsigned)> message("memoryBarrierWithScope:");
  message(object_.get(), kScopeBuffers);
}

void Encoder::end() const {
  static const Method<void()> message("endEncoding");
  message(object_.get());
}

Encoder CommandBuffer::concurrent_encoder() const {
  static const Method<Id(Unsigned)> message("computeCommandEncoderWithDispatchType:");
  const Id encoder = message(object_.get(), kDispatchConcurrent);
  if (encoder == nullptr) throw GpuError(kGpuFailed, "Metal gives no compute encoder");
  return Encoder(Owned::retained(encoder));
}

void CommandBuffer::commit() const {
  static const Method<void()> message("commit");
  message(object_.get());
}

void CommandBuffer::wait_until_completed() const {
  static const Method<void()> message("waitUntilCompleted");
  message(object_.get());
}

void CommandBuffer::check() const {
  static const Method<Unsigned()> status("status");
  static const Method<Id()> error("error");
  if (status(object_.get()) != kStatusCompleted) throw command_error(error(object_.get()));
}

void ResidencySet::add(const Buffer& buffer) const {
  static const Method<void(Id)> message("addAllocation:");
  message(object_.get(), buffer.id());
}

void ResidencySet::commit_and_request() const {
  static const Method<void()> commit("commit");
  static const Method<void()> request("requestResidency");
  commit(object_.get());
  request(object_.get());
}

CommandBuffer Queue::command_buffer() const {
  static const Method<Id()> message("commandBuffer");
  const Id made = message(object_.get());
  if (made == nullptr) throw GpuError(kGpuFailed, "Metal gives no command buffer");
  return CommandBuffer(Owned::retained(made));
}

void Queue::add(const ResidencySet& set) const {
  static const Method<void(Id)> message("addResidencySet:");
  message(object_.get(), set.id());
}

Device Device::system_default() {
  return Device(required(objc::runtime().system_default_device(), "this system has no Metal device"));
}

std::string Device::name() const {
  static const Method<Id()> message("name");
  return objc::text_of(message(object_.get()));
}

bool Device::unified_memory() const {
  static const Method<bool()> message("hasUnifiedMemory");
  return message(object_.get());
}

bool Device::tensor_units() const {
  static const Method<bool(long)> message("supportsFamily:");
  constexpr long kApple10 = 1010;  // MTLGPUFamilyApple10
  return message(object_.get(), kApple10);
}

std::size_t Device::max_buffer_bytes() const {
  static const Method<Unsigned()> message("maxBufferLength");
  return message(object_.get());
}

std::size_t Device::working_set_bytes() const {
  static const Method<std::uint64_t()> message("recommendedMaxWorkingSetSize");
  return message(object_.get());
}

Queue Device::queue() const {
  static const Method<Id()> message("newCommandQueue");
  return Queue(required(message(object_.get()), "Metal gives no command queue"));
}

Buffer Device::buffer(std::size_t bytes) const {
  static const Method<Id(Unsigned, Unsigned)> message("newBufferWithLength:options:");
  const Id made = message(object_.get(), bytes, kStorageShared);
  if (made == nullptr) throw GpuError(kGpuFailed, "Metal has no buffer of " + std::to_string(bytes) + " bytes");
  return Buffer(Owned(made));
}

Buffer Device::buffer_over(void* memory, std::size_t bytes) const {
  static const Method<Id(void*, Unsigned, Unsigned, Id)> message(
      "newBufferWithBytesNoCopy:length:options:deallocator:");
  const Id made = message(object_.get(), memory, bytes, kStorageShared, nullptr);
  if (made == nullptr) {
    throw GpuError(kGpuFailed, "Metal lays no buffer over " + std::to_string(bytes) + " bytes of our memory");
  }
  return Buffer(Owned(made));
}

Library Device::library(const std::string& source, Unsigned language) const {
  static const Method<void(Unsigned)> set_language("setLanguageVersion:");
  static const Method<Id(Id, Id, Id*)> message("newLibraryWithSource:options:error:");
  const Owned options = required(objc::make("MTLCompileOptions"), "Metal has no compiler");
  set_language(options.get(), language);
  ask_for_exact_math(options.get());
  Id error = nullptr;
  const Id made = message(object_.get(), objc::string_of(source), options.get(), &error);
  return Library(required(made, "Metal does not compile the kernels", error));
}

Pipeline Device::pipeline(const Owned& function) const {
  static const Method<Id(Id, Id*)> message("newComputePipelineStateWithFunction:error:");
  Id error = nullptr;
  const Id made = message(object_.get(), function.get(), &error);
  return Pipeline(required(made, "Metal makes no pipeline", error));
}

ResidencySet Device::residency_set() const {
  static const Method<Id(Id, Id*)> message("newResidencySetWithDescriptor:error:");
  if (!objc::responds_to(object_.get(), "newResidencySetWithDescriptor:error:")) return {};
  const Owned descriptor(objc::make("MTLResidencySetDescriptor"));
  if (!descriptor) return {};
  Id error = nullptr;
  return ResidencySet(Owned(message(object_.get(), descriptor.get(), &error)));
}

}  // namespace moestream::metal
