// Host code with one planted mistake each; the fake must stop every one of them with a sentence.
//
//     metal_misuse NAME     prints what the fake said and ends with 0; 1 when the mistake went through
//     metal_misuse          lists the names
//
// They are the mistakes that would corrupt, hang or leak on a Mac. "none" makes none: what all others build on is right.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../../host/metal.h"
#include "../../kernels/arguments.h"
#include "objc_runtime.h"
#include "observation.h"

namespace moestream::metal {
std::span<const struct KernelSource> kernel_sources();
}

namespace {

using namespace moestream::metal;
namespace gpu = moestream::gpu;

constexpr std::size_t kCount = 256;
constexpr std::size_t kBytes = kCount * sizeof(float);

struct Host {
  objc::Pool pool;
  Device device = Device::system_default();
  Queue queue = device.queue();
  Library library = device.library("// file: elementary.metal\n", kLanguage31);
  Pipeline swiglu = device.pipeline(library.function("swiglu", {}));
  Buffer a = device.buffer(kBytes);
  Buffer b = device.buffer(kBytes);
  Buffer c = device.buffer(kBytes);
  Buffer d = device.buffer(kBytes);

  // out = silu(left) * right
  void encode(const Encoder& encoder, const Buffer& left, const Buffer& right, const Buffer& out,
              std::size_t threads = gpu::kElementThreads) {
    const gpu::ElementArguments arguments{.count = kCount, .unused = {}};
    encoder.pipeline(swiglu);
    encoder.buffer(left, 0, 0);
    encoder.buffer(right, 0, 1);
    encoder.buffer(out, 0, 2);
    encoder.bytes(&arguments, sizeof arguments, 3);
    encoder.dispatch({1, 1, 1}, {threads, 1, 1});
  }

  CommandBuffer encoded() {
    CommandBuffer commands = queue.command_buffer();
    const Encoder encoder = commands.concurrent_encoder();
    encode(encoder, a, b, c);
    encoder.end();
    return commands;
  }
};

void finish(const CommandBuffer& commands) {
  commands.commit();
  commands.wait_until_completed();
  commands.check();
}

void nothing_wrong() {
  Host host;
  CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.b, host.c);
  encoder.barrier();
  host.encode(encoder, host.c, host.b, host.d);
  encoder.end();
  finish(commands);
}

void missing_barrier() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.b, host.c);
  host.encode(encoder, host.c, host.b, host.d);
}

// Both write the same numbers' places, which shows when they run.
void missing_barrier_between_writes() {
  Host host;
  auto* const values = reinterpret_cast<float*>(host.a.contents());
  auto* const others = reinterpret_cast<float*>(host.b.contents());
  for (std::size_t i = 0; i < kCount; ++i) {
    values[i] = 1.0f + static_cast<float>(i);
    others[i] = 2.0f + static_cast<float>(i);
  }
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.a, host.c);
  host.encode(encoder, host.b, host.b, host.c);
  encoder.end();
  finish(commands);
}

void encoder_not_ended() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.b, host.c);
  commands.commit();
}

void second_encoder() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder first = commands.concurrent_encoder();
  const Encoder second = commands.concurrent_encoder();
}

void encoder_used_after_end() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  encoder.end();
  encoder.barrier();
}

void commit_twice() {
  Host host;
  const CommandBuffer commands = host.encoded();
  commands.commit();
  commands.commit();
}

void encoding_after_commit() {
  Host host;
  const CommandBuffer commands = host.encoded();
  commands.commit();
  commands.concurrent_encoder();
}

void wait_without_commit() {
  Host host;
  host.encoded().wait_until_completed();
}

void buffer_not_bound() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  encoder.pipeline(host.swiglu);
  encoder.buffer(host.a, 0, 0);
  encoder.dispatch({1, 1, 1}, {gpu::kElementThreads, 1, 1});
}

void buffer_left_over() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.b, host.c);
  encoder.barrier();
  encoder.pipeline(host.swiglu);
  encoder.dispatch({1, 1, 1}, {gpu::kElementThreads, 1, 1});
}

void offset_beyond_end() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  encoder.buffer(host.a, kBytes, 0);
}

void no_pipeline() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  commands.concurrent_encoder().dispatch({1, 1, 1}, {32, 1, 1});
}

void no_threadgroups() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  encoder.pipeline(host.swiglu);
  encoder.dispatch({0, 1, 1}, {32, 1, 1});
}

void too_many_threads() {
  Host host;
  const CommandBuffer commands = host.queue.command_buffer();
  host.encode(commands.concurrent_encoder(), host.a, host.b, host.c, 2048);
}

void too_many_bytes() {
  Host host;
  const std::vector<std::byte> bytes(4097);
  const CommandBuffer commands = host.queue.command_buffer();
  commands.concurrent_encoder().bytes(bytes.data(), bytes.size(), 3);
}

void written_bytes() {
  Host host;
  const gpu::ElementArguments arguments{.count = kCount, .unused = {}};
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  encoder.pipeline(host.swiglu);
  encoder.buffer(host.a, 0, 0);
  encoder.buffer(host.b, 0, 1);
  encoder.bytes(&arguments, sizeof arguments, 2);
  encoder.bytes(&arguments, sizeof arguments, 3);
  encoder.dispatch({1, 1, 1}, {gpu::kElementThreads, 1, 1});
}

void memory_not_in_pages() {
  Host host;
  alignas(64) static std::byte memory[65536];
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  host.device.buffer_over(memory + (address % 16384 == 0 ? 4096 : 0), 16384);
}

// Half of the pages that the GPU is given belong to nobody.
void written_memory_not_mapped() {
  Host host;
  constexpr std::size_t kPages = 16384;
  void* const mapped = mmap(nullptr, 3 * kPages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto address = (reinterpret_cast<std::uintptr_t>(mapped) + kPages - 1) / kPages * kPages;
  auto* const memory = reinterpret_cast<std::byte*>(address);
  munmap(memory + kPages / 2, kPages / 2);
  const Buffer over = host.device.buffer_over(memory, kPages);
  const CommandBuffer commands = host.queue.command_buffer();
  const Encoder encoder = commands.concurrent_encoder();
  host.encode(encoder, host.a, host.b, over);
}

void unknown_selector() {
  Host host;
  static const objc::Method<void()> message("setLabels:");
  message(host.a.id());
}

void over_release() {
  Host host;
  objc::Id id = nullptr;
  {
    const Buffer buffer = host.device.buffer(16);
    id = buffer.id();
  }
  objc::release(id);
}

void autorelease_without_pool() {
  std::optional<Host> host(std::in_place);
  Queue queue = std::move(host->queue);
  host.reset();
  queue.command_buffer();
}

void leak() {
  {
    Host host;
    objc::retain(host.a.id());
  }
  for (const auto& [name, count] : moestream::fake::live_objects()) {
    if (name != "MTLFakeBuffer") continue;
    std::fprintf(stderr, "fake Metal: leak of %ld %s\n", count, name.c_str());
    throw moestream::fake::Misuse("leak");
  }
}

void fast_math() {
  Host host;
  static const objc::Method<objc::Id(objc::Id, objc::Id, objc::Id*)> message("newLibraryWithSource:options:error:");
  static const objc::Method<void(objc::Unsigned)> language("setLanguageVersion:");
  const objc::Owned options(objc::make("MTLCompileOptions"));
  language(options.get(), kLanguage31);
  objc::Id error = nullptr;
  // The device is the one object that every Host shares.
  message(objc::runtime().system_default_device(), objc::string_of("// file: elementary.metal\n"), options.get(), &error);
}

void too_many_uncommitted() {
  Host host;
  std::vector<CommandBuffer> all;
  for (int i = 0; i < 65; ++i) all.push_back(host.queue.command_buffer());
}

const std::map<std::string, std::function<void()>> kMistakes = {
    {"none", nothing_wrong},
    {"missing-barrier", missing_barrier},
    {"missing-barrier-between-writes", missing_barrier_between_writes},
    {"encoder-not-ended", encoder_not_ended},
    {"second-encoder", second_encoder},
    {"encoder-used-after-end", encoder_used_after_end},
    {"commit-twice", commit_twice},
    {"encoding-after-commit", encoding_after_commit},
    {"wait-without-commit", wait_without_commit},
    {"buffer-not-bound", buffer_not_bound},
    {"buffer-left-over", buffer_left_over},
    {"offset-beyond-end", offset_beyond_end},
    {"no-pipeline", no_pipeline},
    {"no-threadgroups", no_threadgroups},
    {"too-many-threads", too_many_threads},
    {"too-many-bytes", too_many_bytes},
    {"written-bytes", written_bytes},
    {"memory-not-in-pages", memory_not_in_pages},
    {"written-memory-not-mapped", written_memory_not_mapped},
    {"unknown-selector", unknown_selector},
    {"over-release", over_release},
    {"autorelease-without-pool", autorelease_without_pool},
    {"leak", leak},
    {"fast-math", fast_math},
    {"too-many-uncommitted", too_many_uncommitted},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
    for (const auto& [name, mistake] : kMistakes) std::puts(name.c_str());
    return 0;
  }
  const auto found = kMistakes.find(arguments[1]);
  if (found == kMistakes.end()) return 2;
  // Objects left in the middle of a mistake complain once more on their way out; the first word is what counts.
  try {
    found->second();
  } catch (const std::exception& error) {
    std::puts(error.what());
    std::fflush(stdout);
    std::_Exit(0);
  }
  std::puts("nothing");
  return 1;
}
