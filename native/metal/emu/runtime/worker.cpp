// A threadgroup's lanes as fibers on one OS thread.
//
// A simdgroup runs until all its lanes wait or have ended, then the next one; so the work of a simdgroup function or a
// barrier is done by whichever lane arrives last. Lanes start in the order that the options ask for: a kernel whose
// result depends on it has a race.
#include "worker.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "fiber_switch.h"
#include "sanitizers.h"

namespace moestream::emu {

thread_local Lane* current_lane;
thread_local Worker* current_worker;

namespace {

constexpr std::uint32_t bit(std::uint32_t lane) { return 1u << lane; }
constexpr std::uint32_t line_of(std::uint32_t place) { return place >> 8; }

constexpr std::size_t rounded_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

Worker::Worker(const Options& options)
    : options_(options),
      random_state_(options.seed * 2654435761u + 88172645463325252u),
      memory_(new Memory),
      lanes_(new Lane[kMaxThreadgroupThreads]),
      simdgroups_(new Simdgroup[kMaxSimdgroups]),
      fake_stacks_(new void*[kMaxThreadgroupThreads + 1]()) {
  void* const stacks = mmap(nullptr, kStackBytes * kMaxThreadgroupThreads, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  stacks_ = static_cast<unsigned char*>(stacks);
  for (std::uint32_t i = 0; i < kMaxThreadgroupThreads; ++i) lanes_[i].sanitizer_fiber = new_sanitizer_fiber();
  main_fiber_ = this_sanitizer_fiber();
}

Worker::~Worker() {
  for (std::uint32_t i = 0; i < kMaxThreadgroupThreads; ++i) end_sanitizer_fiber(lanes_[i].sanitizer_fiber);
  allow(stacks_, kStackBytes * kMaxThreadgroupThreads);
  munmap(stacks_, kStackBytes * kMaxThreadgroupThreads);
}

std::uint32_t Worker::random() {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return static_cast<std::uint32_t>(random_state_ >> 16);
}

// Which of the ready lanes goes next.
std::uint32_t Worker::pick(std::uint32_t mask, std::uint32_t after) {
  if (options_.order == LaneOrder::kReverse) return 31 - static_cast<std::uint32_t>(std::countl_zero(mask));
  if (options_.order == LaneOrder::kRandom) {
    const std::uint32_t turn = random() % kSimdWidth;
    const auto first = static_cast<std::uint32_t>(std::countr_zero(std::rotr(mask, static_cast<int>(turn))));
    return (first + turn) % kSimdWidth;
  }
  const std::uint32_t later = mask & ~((2u << after) - 1u);
  return static_cast<std::uint32_t>(std::countr_zero(later != 0 ? later : mask));
}

void Worker::order_simdgroups() {
  const std::uint32_t count = threadgroup_.simdgroups;
  for (std::uint32_t i = 0; i < count; ++i) order_[i] = options_.order == LaneOrder::kReverse ? count - 1 - i : i;
  if (options_.order != LaneOrder::kRandom) return;
  for (std::uint32_t i = count; i-- > 1;) std::swap(order_[i], order_[random() % (i + 1)]);
}

void Worker::prepare_memory() {
  Threadgroup& group = threadgroup_;
  allow(memory_->bytes, kMemoryBytes);
  // All bits set is a NaN of every float type.
  if (options_.poison) std::memset(memory_->bytes, 0xff, kMemoryBytes);
  forbid(memory_->bytes, kMemoryBytes);
  group.memory = memory_->bytes;
  group.memory_used = 0;
  std::memset(group.variable_offsets, 0xff, sizeof group.variable_offsets);
  for (std::size_t i = 0; i < kBufferSlots; ++i) {
    const std::uint32_t bytes = group.launch->threadgroup_bytes[i];
    group.given_offsets[i] = group.memory_used;
    if (bytes == 0) continue;
    allow(group.memory + group.memory_used, bytes);
    group.memory_used = static_cast<std::uint32_t>(rounded_up(group.memory_used + bytes + kRedzoneBytes, 16));
  }
}

void Worker::prepare_lanes(Triple size) {
  Threadgroup& group = threadgroup_;
  group.threads = size.v[0] * size.v[1] * size.v[2];
  group.simdgroups = (group.threads + kSimdWidth - 1) / kSimdWidth;
  for (std::uint32_t s = 0; s < group.simdgroups; ++s) {
    Simdgroup& simdgroup = simdgroups_[s];
    const std::uint32_t lanes = std::min(group.threads - s * kSimdWidth, kSimdWidth);
    simdgroup.all = lanes == kSimdWidth ? ~0u : bit(lanes) - 1;
    simdgroup.ready = simdgroup.all;
    simdgroup.in_function = simdgroup.at_barrier = simdgroup.done = 0;
    simdgroup.combine = nullptr;
  }
  for (std::uint32_t i = 0; i < group.threads; ++i) {
    Lane& lane = lanes_[i];
    lane.index = i;
    lane.lane = i % kSimdWidth;
    lane.simdgroup_index = i / kSimdWidth;
    lane.simdgroup = &simdgroups_[lane.simdgroup_index];
    lane.simdgroup->lanes[lane.lane] = &lane;
    lane.threadgroup = &group;
    lane.position = {{i % size.v[0], i / size.v[0] % size.v[1], i / (size.v[0] * size.v[1])}};
    unsigned char* const stack = stacks_ + kStackBytes * i;
    allow(stack, kStackBytes);
    fake_stacks_[i] = nullptr;  // a fresh fiber has none; a stale one would be freed twice
    // Stacks that begin at the same offset would share a few sets of the first cache.
    lane.stack_pointer = fresh_stack(stack + kStackBytes - (i * 320u & 16383u), &Worker::lane_entry);
  }
}

void Worker::finish_switch([[maybe_unused]] Lane* arrived) {
#if defined(MOESTREAM_EMU_ASAN)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  const std::size_t slot = arrived != nullptr ? arrived->index : kMaxThreadgroupThreads;
  __sanitizer_finish_switch_fiber(fake_stacks_[slot], &bottom, &bytes);
  if (arrived != nullptr && main_stack_ == nullptr) {
    main_stack_ = bottom;
    main_stack_bytes_ = bytes;
  }
#endif
}

// A null lane is the main stack.
void Worker::switch_to(Lane* from, Lane* to, [[maybe_unused]] bool ends) {
  current_lane = to;
#if defined(MOESTREAM_EMU_ASAN)
  void** const save = ends ? nullptr : &fake_stacks_[from != nullptr ? from->index : kMaxThreadgroupThreads];
  if (to != nullptr) {
    __sanitizer_start_switch_fiber(save, stacks_ + kStackBytes * to->index, kStackBytes);
  } else {
    __sanitizer_start_switch_fiber(save, main_stack_, main_stack_bytes_);
  }
#endif
#if defined(MOESTREAM_EMU_TSAN)
  __tsan_switch_to_fiber(to != nullptr ? to->sanitizer_fiber : main_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  moestream_emu_switch(from != nullptr ? &from->stack_pointer : &main_stack_pointer_,
                       to != nullptr ? to->stack_pointer : main_stack_pointer_);
  finish_switch(from);
}

void Worker::lane_entry() {
  Worker& worker = *current_worker;
  Lane& me = *current_lane;
  worker.finish_switch(&me);
  acquire(&worker.started_);
  const LaunchState& launch = *worker.threadgroup_.launch;
  const auto& entry = *static_cast<const KernelEntry*>(launch.kernel);
  entry.run(me, launch, entry.parameters);
  release(&worker.finished_);
  me.simdgroup->done |= bit(me.lane);
  worker.schedule(&me, true);
  std::abort();  // an ended lane is never switched to
}

// Runs the function that the first waiting lane waits in, for all lanes that wait at the same place.
void Worker::resolve(Simdgroup& simdgroup) {
  const auto first = static_cast<std::uint32_t>(std::countr_zero(simdgroup.in_function));
  const std::uint32_t place = simdgroup.lanes[first]->place;
  std::uint32_t mask = 0;
  for (std::uint32_t rest = simdgroup.in_function; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<std::uint32_t>(std::countr_zero(rest));
    if (simdgroup.lanes[lane]->place == place) mask |= bit(lane);
  }
  // Lanes that have returned are missing too: what a sum means then is up to the device.
  if (options_.require_full_simd && mask != simdgroup.all) {
    emu::fault("a simdgroup function at line %u is reached by lanes %08x of %08x", line_of(place), mask, simdgroup.all);
  }
  simdgroup.active = mask;
  if (simdgroup.combine != nullptr) simdgroup.combine(simdgroup, mask);
  simdgroup.in_function &= ~mask;
  simdgroup.ready |= mask;
}

Simdgroup* Worker::next_simdgroup() {
  for (std::uint32_t i = 0; i < threadgroup_.simdgroups; ++i) {
    Simdgroup& each = simdgroups_[order_[i]];
    if (each.ready != 0 || each.in_function != 0) return &each;
  }
  return nullptr;
}

// Lets everyone who waits at the barrier go on; false when nobody waits.
bool Worker::open_barrier(Lane* me) {
  std::uint32_t place = 0;
  bool anyone = false;
  for (std::uint32_t s = 0; s < threadgroup_.simdgroups; ++s) anyone = anyone || simdgroups_[s].at_barrier != 0;
  if (!anyone) return false;
  for (std::uint32_t s = 0; s < threadgroup_.simdgroups && options_.strict_barrier; ++s) {
    const Simdgroup& each = simdgroups_[s];
    if (each.done != 0) {
      current_lane = me;
      emu::fault("a threadgroup_barrier is reached by some threads after others returned (lanes %08x of simdgroup %u)",
                 each.done, s);
    }
    for (std::uint32_t rest = each.at_barrier; rest != 0; rest &= rest - 1) {
      const std::uint32_t found = each.lanes[std::countr_zero(rest)]->place;
      if (place == 0) place = found;
      if (place == found) continue;
      current_lane = me;
      emu::fault("threads of one threadgroup wait at different barriers, lines %u and %u", line_of(place),
                 line_of(found));
    }
  }
  for (std::uint32_t s = 0; s < threadgroup_.simdgroups; ++s) {
    simdgroups_[s].ready |= std::exchange(simdgroups_[s].at_barrier, 0u);
  }
  order_simdgroups();
  return true;
}

// `me` has just begun to wait, or has ended. Returns when it may go on.
void Worker::schedule(Lane* me, bool ends) {
  Simdgroup* simdgroup = me->simdgroup;
  for (;;) {
    if (simdgroup->ready != 0) {
      const std::uint32_t after = me->simdgroup == simdgroup ? me->lane : kSimdWidth - 1;
      Lane* const next = simdgroup->lanes[pick(simdgroup->ready, after)];
      simdgroup->ready &= ~bit(next->lane);
      if (next != me) switch_to(me, next, ends);
      return;  // whoever made this lane ready has switched back to it
    }
    if (simdgroup->in_function != 0) {
      resolve(*simdgroup);
      continue;
    }
    simdgroup = next_simdgroup();
    if (simdgroup != nullptr) continue;
    if (!open_barrier(me)) {
      switch_to(me, nullptr, ends);
      return;
    }
    simdgroup = next_simdgroup();
  }
}

std::uint32_t Worker::wait_for_simdgroup(std::uint32_t place, Simdgroup::Combine combine) {
  Lane* const me = current_lane;
  Simdgroup& simdgroup = *me->simdgroup;
  me->place = place;
  simdgroup.combine = combine;
  simdgroup.in_function |= bit(me->lane);
  if (combine == nullptr) release(&simdgroup);
  schedule(me, false);
  if (combine == nullptr) acquire(&simdgroup);
  return simdgroup.active;
}

void Worker::wait_for_threadgroup(std::uint32_t place) {
  Lane* const me = current_lane;
  me->place = place;
  me->simdgroup->at_barrier |= bit(me->lane);
  release(&threadgroup_);
  schedule(me, false);
  acquire(&threadgroup_);
}

void* Worker::variable(int id, std::size_t bytes, std::size_t alignment) {
  Threadgroup& group = threadgroup_;
  if (id >= static_cast<int>(Threadgroup::kMaxVariables)) emu::fault("too many threadgroup variables");
  std::uint32_t& offset = group.variable_offsets[id];
  if (offset == Threadgroup::kNoOffset) {
    const std::size_t begin = rounded_up(group.memory_used, alignment);
    if (begin + bytes + kRedzoneBytes > kMemoryBytes) emu::fault("too much threadgroup memory");
    offset = static_cast<std::uint32_t>(begin);
    group.memory_used = static_cast<std::uint32_t>(rounded_up(begin + bytes + kRedzoneBytes, 16));
    group.variable_bytes += static_cast<std::uint32_t>(bytes);
    if (group.variable_bytes > kMaxThreadgroupBytes) {
      emu::fault("%u bytes of threadgroup memory are more than %u", group.variable_bytes, kMaxThreadgroupBytes);
    }
    allow(group.memory + begin, bytes);
  }
  return group.memory + offset;
}

// Leaves the lane for good; run() throws.
void Worker::fault(const char* text) {
  fault_ = text;
  release(&finished_);
  switch_to(current_lane, nullptr, true);
  std::abort();
}

void Worker::run(const LaunchState& launch, Triple position) {
  Threadgroup& group = threadgroup_;
  group.launch = &launch;
  group.position = position;
  group.variable_bytes = 0;
  for (const std::uint32_t bytes : launch.threadgroup_bytes) group.variable_bytes += bytes;
  prepare_memory();
  prepare_lanes(launch.threads);
  order_simdgroups();
  fault_.clear();
  current_worker = this;
  Simdgroup& first = simdgroups_[order_[0]];
  Lane* const lane = first.lanes[pick(first.ready, kSimdWidth - 1)];
  first.ready &= ~bit(lane->lane);
  release(&started_);
  switch_to(nullptr, lane, false);
  acquire(&finished_);
  allow(memory_->bytes, kMemoryBytes);
  if (!fault_.empty()) throw KernelFault(fault_);
}

std::uint32_t wait_for_simdgroup(std::uint32_t place, Simdgroup::Combine combine) {
  return current_worker->wait_for_simdgroup(place, combine);
}

void wait_for_threadgroup(std::uint32_t place) { current_worker->wait_for_threadgroup(place); }

void* threadgroup_memory(int variable, std::size_t bytes, std::size_t alignment) {
  return current_worker->variable(variable, bytes, alignment);
}

void fault(const char* format, ...) {
  char text[512];
  const Lane& lane = *current_lane;
  const Threadgroup& group = *lane.threadgroup;
  const auto& entry = *static_cast<const KernelEntry*>(group.launch->kernel);
  const int begun = std::snprintf(text, sizeof text, "kernel %s, threadgroup (%u, %u, %u), thread %u: ", entry.name,
                                  group.position.v[0], group.position.v[1], group.position.v[2], lane.index);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + begun, sizeof text - static_cast<std::size_t>(begun), format, arguments);
  va_end(arguments);
  current_worker->fault(text);
}

}  // namespace moestream::emu
