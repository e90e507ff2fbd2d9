// Encoding dispatches, and finding those that need a barrier between them.
//
// Dispatches of a concurrent encoder without a barrier between them form a group and may run at once. Two of a group may
// read the same bytes; if one writes what the other reads, a barrier is missing, and encoding says so. Two that write the
// same buffer may mean different parts of it, which the bindings do not tell: those are watched when they run, by
// comparing the buffer before and after, and bytes that both changed are a missing barrier.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "fake_metal.h"
#include "observation.h"

namespace moestream::fake {
namespace {

constexpr Unsigned kBytesMax = 4096;

void check_open(const Encoder& encoder) {
  if (encoder.ended) misuse("an encoder used after endEncoding");
}

std::string named(const Dispatch& dispatch, const Use& use) {
  return std::string(dispatch.launch.kernel->name) + " buffer(" + std::to_string(use.index) + ")";
}

// Buffers laid over neighbouring memory share pages and nothing else, so only parts of one buffer are compared.
bool overlap(const Use& a, const Use& b) { return a.buffer == b.buffer && a.begin < b.end && b.begin < a.end; }

void check_group(CommandBuffer& commands, std::size_t group_begin, Dispatch& next) {
  for (std::size_t i = group_begin; i < commands.dispatches.size(); ++i) {
    Dispatch& earlier = commands.dispatches[i];
    for (Use& before : earlier.uses) {
      for (Use& now : next.uses) {
        if ((!before.written && !now.written) || !overlap(before, now)) continue;
        if (!before.written || !now.written) {
          misuse("missing memoryBarrier in a concurrent encoder: " + named(earlier, before) + " -> " + named(next, now));
        }
        before.watched = true;
        now.watched = true;
      }
    }
  }
}

std::uint32_t narrow(Unsigned value, const char* what) {
  if (value == 0 || value > 0xffffffff) misuse(std::string("a dispatch of ") + std::to_string(value) + " " + what);
  return static_cast<std::uint32_t>(value);
}

// A kernel may write to what is there, and watching copies it whole. Metal's pages are longer than this system's, so a
// buffer that begins and ends between two allocations would take in pages that belong to nobody, or to another.
void check_mapped(Buffer& buffer, const std::string& kernel) {
  if (buffer.owns || buffer.known_mapped) return;
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((buffer.bytes + page_bytes - 1) / page_bytes);
  if (mincore(buffer.memory, buffer.bytes, resident.data()) != 0) {
    misuse(kernel + " writes to a buffer over memory that is not mapped throughout");
  }
  buffer.known_mapped = true;
}

void bind_all(Encoder& encoder, Dispatch& dispatch) {
  const emu::KernelInfo& kernel = *encoder.pipeline->kernel;
  const std::string name(kernel.name);
  for (const emu::Binding& each : kernel.bindings) {
    const std::string at = std::to_string(each.index);
    if (each.kind == emu::Binding::Kind::kThreadgroup) {
      if (encoder.threadgroup_bytes[each.index] == 0) misuse(name + ": threadgroup memory " + at + " has no length");
      dispatch.launch.threadgroup_bytes[each.index] = static_cast<std::uint32_t>(encoder.threadgroup_bytes[each.index]);
      continue;
    }
    const Encoder::Bound& bound = encoder.bound[each.index];
    if (bound.memory == nullptr) misuse(name + ": buffer(" + at + ") is not bound");
    if (!bound.fresh) misuse(name + ": buffer(" + at + ") is left over from an earlier kernel");
    dispatch.launch.buffers[each.index] = bound.memory;
    if (bound.buffer != nullptr) {
      if (each.written) check_mapped(*bound.buffer, name);
      const Use use{bound.buffer, bound.memory, bound.memory + bound.bytes, each.written, each.index};
      // A buffer may stand for several indices that the kernel does not use all.
      const bool twice = std::ranges::any_of(dispatch.uses, [&](const Use& other) {
        return other.begin == use.begin && other.written == use.written;
      });
      if (!twice) dispatch.uses.push_back(use);
    } else if (each.written) {
      misuse(name + ": buffer(" + at + ") is written and was given as bytes");
    }
  }
}

void dispatch_groups(Encoder* encoder, Selector, Size groups, Size threads) {
  check_open(*encoder);
  if (encoder->pipeline == nullptr) misuse("a dispatch without a pipeline");
  const emu::KernelInfo& kernel = *encoder->pipeline->kernel;
  if (threads.width * threads.height * threads.depth > kernel.max_threads) {
    misuse(std::string(kernel.name) + ": more threads per threadgroup than the pipeline takes");
  }
  Dispatch dispatch;
  dispatch.launch.kernel = &kernel;
  dispatch.launch.threadgroups = {narrow(groups.width, "threadgroups"), narrow(groups.height, "threadgroups"),
                                  narrow(groups.depth, "threadgroups")};
  dispatch.launch.threads = {narrow(threads.width, "threads"), narrow(threads.height, "threads"),
                             narrow(threads.depth, "threads")};
  dispatch.constants = encoder->pipeline->constants;
  dispatch.copies = encoder->copies;
  CommandBuffer& commands = *encoder->commands;
  dispatch.group = commands.groups;
  bind_all(*encoder, dispatch);
  if (encoder->concurrent) check_group(commands, encoder->group_begin, dispatch);
  commands.dispatches.push_back(std::move(dispatch));
  ++counters().dispatches;
}

void set_pipeline(Encoder* encoder, Selector, Pipeline* pipeline) {
  check_open(*encoder);
  encoder->pipeline = pipeline;
  encoder->commands->hold(pipeline);
  for (Encoder::Bound& each : encoder->bound) each.fresh = false;
  encoder->threadgroup_bytes = {};
  encoder->copies.clear();
}

void set_buffer(Encoder* encoder, Selector, Buffer* buffer, Unsigned offset, Unsigned index) {
  check_open(*encoder);
  if (index >= emu::kBufferSlots) misuse("buffer index " + std::to_string(index));
  if (buffer == nullptr) misuse("no buffer for index " + std::to_string(index));
  if (offset >= buffer->bytes) misuse("a buffer bound beyond its end");
  if (counters().bindings++ == injection().drop_binding) return;
  encoder->bound[index] = {buffer, buffer->memory + offset, buffer->bytes - offset, true};
  encoder->commands->hold(buffer);
}

void set_bytes(Encoder* encoder, Selector, const void* data, Unsigned bytes, Unsigned index) {
  check_open(*encoder);
  if (index >= emu::kBufferSlots) misuse("buffer index " + std::to_string(index));
  if (bytes == 0 || bytes > kBytesMax) misuse("setBytes of " + std::to_string(bytes) + " bytes, at most 4096");
  const auto* const begin = static_cast<const std::byte*>(data);
  const auto copy = std::make_shared<std::vector<std::byte>>(begin, begin + bytes);
  encoder->copies.push_back(copy);
  encoder->bound[index] = {nullptr, copy->data(), bytes, true};
}

void set_threadgroup_memory(Encoder* encoder, Selector, Unsigned bytes, Unsigned index) {
  check_open(*encoder);
  if (bytes % 16 != 0) misuse("threadgroup memory of " + std::to_string(bytes) + " bytes, no multiple of 16");
  encoder->threadgroup_bytes[index] = bytes;
  Unsigned sum = 0;
  for (const Unsigned each : encoder->threadgroup_bytes) sum += each;
  if (sum > emu::kMaxThreadgroupBytes) misuse("more than 32 KiB of threadgroup memory");
}

void memory_barrier(Encoder* encoder, Selector, Unsigned) {
  check_open(*encoder);
  const long number = counters().barriers++;
  if (number == injection().drop_barrier) return;
  encoder->group_begin = encoder->commands->dispatches.size();
  ++encoder->commands->groups;
}

void end_encoding(Encoder* encoder, Selector) {
  check_open(*encoder);
  encoder->ended = true;
  encoder->commands->encoding = false;
}

// What the watched dispatches of one group have changed so far.
class Watch {
 public:
  void run(const Dispatch& dispatch) {
    emu::Launch launch = dispatch.launch;
    launch.constants = dispatch.constants;
    std::vector<std::vector<std::byte>> before;
    for (const Use& use : dispatch.uses) {
      if (use.watched) before.emplace_back(use.begin, use.end);
    }
    emu::dispatch(launch);
    auto old = before.begin();
    for (const Use& use : dispatch.uses) {
      if (use.watched) note_changes(dispatch, use, *old++);
    }
  }

 private:
  struct Change {
    const std::byte* begin;
    const std::byte* end;
    std::string by;
  };

  // In pieces of 16 bytes: parts that kernels write apart from each other begin on such a boundary.
  void note_changes(const Dispatch& dispatch, const Use& use, const std::vector<std::byte>& old) {
    constexpr std::size_t kPiece = 16;
    const std::size_t size = old.size();
    std::vector<Change> found;
    for (std::size_t at = 0; at < size; at += kPiece) {
      const std::size_t length = std::min(kPiece, size - at);
      if (std::memcmp(use.begin + at, old.data() + at, length) == 0) continue;
      if (!found.empty() && found.back().end == use.begin + at) {
        found.back().end += length;
      } else {
        found.push_back({use.begin + at, use.begin + at + length, named(dispatch, use)});
      }
    }
    for (const Change& now : found) {
      for (const Change& before : changes_) {
        if (now.begin < before.end && before.begin < now.end) {
          misuse("missing memoryBarrier in a concurrent encoder, both write: " + before.by + " -> " + now.by);
        }
      }
    }
    changes_.insert(changes_.end(), found.begin(), found.end());
  }

  std::vector<Change> changes_;
};

}  // namespace

Encoder::~Encoder() {
  if (!ended) misuse("an encoder released before endEncoding");
  release(commands);
}

// A group runs last to first: a GPU may take it in any order, and the order that the host wrote would hide that some
// dispatch needs what an earlier one of its group writes into a buffer that both may write.
void execute(CommandBuffer& commands) {
  const std::vector<Dispatch>& all = commands.dispatches;
  for (std::size_t begin = 0; begin < all.size();) {
    std::size_t end = begin;
    while (end < all.size() && all[end].group == all[begin].group) ++end;
    Watch watch;
    for (std::size_t i = end; i-- > begin;) watch.run(all[i]);
    begin = end;
  }
}

void define_encoder(const Class& root) {
  Class& encoder = define<Encoder>("MTLFakeComputeEncoder", &root);
  method(encoder, "setComputePipelineState:", &set_pipeline);
  method(encoder, "setBuffer:offset:atIndex:", &set_buffer);
  method(encoder, "setBytes:length:atIndex:", &set_bytes);
  method(encoder, "setThreadgroupMemoryLength:atIndex:", &set_threadgroup_memory);
  method(encoder, "dispatchThreadgroups:threadsPerThreadgroup:", &dispatch_groups);
  method(encoder, "memoryBarrierWithScope:", &memory_barrier);
  method(encoder, "endEncoding", &end_encoding);
}

}  // namespace moestream::fake
