#include "uring.h"

#ifdef __linux__

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "memory.h"
#include "moestream/invariant.h"

namespace moestream::io {

namespace {

constexpr std::uint64_t wake_id = ~std::uint64_t{0};
// The kernel takes no larger registered buffer, and not more of them.
constexpr std::size_t registered_buffer_bytes_max = std::size_t{1} << 30;
constexpr std::size_t registered_buffers_max = 1U << 14;

[[noreturn]] void throw_errno(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

int setup(unsigned entries, io_uring_params& parameters) {
  return static_cast<int>(::syscall(__NR_io_uring_setup, entries, &parameters));
}

int register_with(int ring_fd, unsigned operation, const void* argument, unsigned count) {
  return static_cast<int>(::syscall(__NR_io_uring_register, ring_fd, operation, argument, count));
}

std::uint32_t load_acquire(std::uint32_t* word) {
  return std::atomic_ref<std::uint32_t>(*word).load(std::memory_order_acquire);
}

void store_release(std::uint32_t* word, std::uint32_t value) {
  std::atomic_ref<std::uint32_t>(*word).store(value, std::memory_order_release);
}

// Newer kernels do less for a ring that one thread owns; older ones know nothing of it.
int setup_best(unsigned entries, io_uring_params& parameters) {
#if defined(IORING_SETUP_SINGLE_ISSUER) && defined(IORING_SETUP_DEFER_TASKRUN)
  parameters = {};
  parameters.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  const int owned = setup(entries, parameters);
  if (owned >= 0 || errno != EINVAL) return owned;
#endif
  parameters = {};
  return setup(entries, parameters);
}

}  // namespace

Uring::Uring(unsigned depth, std::span<const int> fds, std::span<const std::span<std::byte>> segments, int wake_fd)
    : wake_fd_(wake_fd), fds_(fds.begin(), fds.end()), segments_(segments.begin(), segments.end()) {
  io_uring_params parameters{};
  // One entry more than reads, for the wake descriptor.
  ring_fd_ = setup_best(depth + 1, parameters);
  if (ring_fd_ < 0) throw_errno("io_uring_setup");
  try {
    invariant((parameters.features & IORING_FEAT_SINGLE_MMAP) != 0, "io_uring maps both rings at once");
    sq_ring_bytes_ = static_cast<std::uint32_t>(
        std::max<std::size_t>(parameters.sq_off.array + parameters.sq_entries * sizeof(std::uint32_t),
                              parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe)));
    entries_.bytes = parameters.sq_entries * sizeof(io_uring_sqe);
    map_rings();
    const auto word = [this](std::uint32_t offset) { return reinterpret_cast<std::uint32_t*>(rings_.data + offset); };
    sq_tail_ = word(parameters.sq_off.tail);
    sq_mask_ = word(parameters.sq_off.ring_mask);
    sq_array_ = word(parameters.sq_off.array);
    cq_head_ = word(parameters.cq_off.head);
    cq_tail_ = word(parameters.cq_off.tail);
    cq_mask_ = word(parameters.cq_off.ring_mask);
    cq_entries_ = rings_.data + parameters.cq_off.cqes;
    register_files();
    register_buffers();
  } catch (...) {
    unmap_rings();
    throw;
  }
}

// Closing the ring cancels what is under way or waits for it; the kernel holds the pages until then, and lets go of
// registered files some time later: until then their file system cannot be unmounted. So a ring at rest gives them back
// itself. With reads under way that could wait for a disk that hangs.
Uring::~Uring() {
  if (under_way_ == 0 && files_registered_) register_with(ring_fd_, IORING_UNREGISTER_FILES, nullptr, 0);
  unmap_rings();
}

void Uring::map_rings() {
  const auto map = [this](std::size_t bytes, off_t what) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd_, what);
    if (memory == MAP_FAILED) throw_errno("mapping io_uring");
    return static_cast<std::byte*>(memory);
  };
  rings_ = {map(sq_ring_bytes_, IORING_OFF_SQ_RING), sq_ring_bytes_};
  entries_.data = map(entries_.bytes, IORING_OFF_SQES);
}

void Uring::unmap_rings() noexcept {
  if (entries_.data != nullptr) ::munmap(entries_.data, entries_.bytes);
  if (rings_.data != nullptr) ::munmap(rings_.data, rings_.bytes);
  if (ring_fd_ >= 0) ::close(ring_fd_);
  entries_.data = nullptr;
  rings_.data = nullptr;
  ring_fd_ = -1;
}

void Uring::register_files() {
  if (fds_.empty()) return;
  const int result = register_with(ring_fd_, IORING_REGISTER_FILES, fds_.data(), static_cast<unsigned>(fds_.size()));
  files_registered_ = result == 0;
}

// Without it every read pins its pages anew. CPU-seconds per GB: huge pages 0.002 registered and 0.004 not, small pages
// 0.008 and 0.034, a registered mixture 0.007, as if all were small. So of a segment with huge pages the part that is huge
// throughout is registered, its small end is not; one without is registered as it is.
void Uring::register_buffers() {
  registered_.resize(segments_.size());
  const auto parts = huge_parts(segments_);
  std::vector<iovec> vectors;
  for (std::size_t segment = 0; segment < parts.size() && vectors.size() < registered_buffers_max; ++segment) {
    const auto& whole = parts[segment].empty() ? segments_[segment] : parts[segment];
    const auto part = whole.first(std::min(whole.size(), registered_buffer_bytes_max));
    if (part.empty()) continue;
    registered_[segment] = {part, static_cast<std::uint16_t>(vectors.size())};
    vectors.push_back({part.data(), part.size()});
  }
  if (vectors.empty()) return;
  const int result =
      register_with(ring_fd_, IORING_REGISTER_BUFFERS, vectors.data(), static_cast<unsigned>(vectors.size()));
  if (result == 0) return;
  registering_refused_ = true;
  registered_.assign(segments_.size(), {});
}

// The next submission entry, cleared. There is always one: the ring is deeper than what may be under way.
void* Uring::next_entry() {
  const std::uint32_t tail = *sq_tail_;
  const std::uint32_t index = tail & *sq_mask_;
  sq_array_[index] = index;
  void* entry = entries_.data + index * sizeof(io_uring_sqe);
  std::memset(entry, 0, sizeof(io_uring_sqe));
  store_release(sq_tail_, tail + 1);
  ++to_submit_;
  return entry;
}

void Uring::queue_read(std::uint32_t id, std::size_t file, std::uint64_t file_offset, std::size_t segment,
                       std::size_t segment_offset, std::uint32_t byte_length) {
  invariant(file < fds_.size() && segment < segments_.size(), "a read names a file and a segment of its ring");
  const auto memory = segments_[segment];
  invariant(segment_offset <= memory.size() && byte_length <= memory.size() - segment_offset,
            "a read stays inside its segment");
  const auto into = memory.subspan(segment_offset, byte_length);
  const auto& [registered, index] = registered_[segment];
  const bool fixed = into.data() >= registered.data() && into.data() + into.size() <= registered.data() + registered.size();
  auto* entry = static_cast<io_uring_sqe*>(next_entry());
  entry->opcode = fixed ? IORING_OP_READ_FIXED : IORING_OP_READ;
  entry->fd = files_registered_ ? static_cast<int>(file) : fds_[file];
  entry->flags = files_registered_ ? IOSQE_FIXED_FILE : 0;
  entry->off = file_offset;
  entry->addr = reinterpret_cast<std::uint64_t>(into.data());
  entry->len = byte_length;
  entry->buf_index = fixed ? index : 0;
  entry->user_data = id;
  ++under_way_;
}

void Uring::arm_wake() {
  if (wake_fd_ < 0 || wake_armed_) return;
  auto* entry = static_cast<io_uring_sqe*>(next_entry());
  // A poll, not a read: it writes no memory of ours, whenever the ring ends.
  entry->opcode = IORING_OP_POLL_ADD;
  entry->fd = wake_fd_;
  entry->poll32_events = POLLIN;
  entry->user_data = wake_id;
  wake_armed_ = true;
}

// The counter must be read, or the next poll would end at once.
void Uring::clear_wake() {
  std::uint64_t count = 0;
  if (::read(wake_fd_, &count, sizeof(count)) < 0 && errno != EINTR && errno != EAGAIN) throw_errno("read of the eventfd");
  wake_armed_ = false;
}

std::size_t Uring::wait(std::uint32_t timeout_millis, std::span<UringCompletion> completions) {
  arm_wake();
  __kernel_timespec time{};
  time.tv_sec = timeout_millis / 1000;
  time.tv_nsec = static_cast<long long>(timeout_millis % 1000) * 1'000'000;
  io_uring_getevents_arg argument{};
  argument.ts = reinterpret_cast<std::uint64_t>(&time);
  const long submitted = ::syscall(__NR_io_uring_enter, ring_fd_, to_submit_, 1U,
                                   IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof(argument));
  if (submitted >= 0) to_submit_ -= static_cast<unsigned>(submitted);
  // The time was over, or a signal came: both mean no more than that the caller looks around.
  if (submitted < 0 && errno == ETIME) to_submit_ = 0;
  else if (submitted < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) throw_errno("io_uring_enter");
  return drain(completions);
}

std::size_t Uring::drain(std::span<UringCompletion> completions) {
  std::size_t count = 0;
  std::uint32_t head = *cq_head_;
  const std::uint32_t tail = load_acquire(cq_tail_);
  for (; head != tail && count < completions.size(); ++head) {
    io_uring_cqe completion;
    std::memcpy(&completion, cq_entries_ + (head & *cq_mask_) * sizeof(io_uring_cqe), sizeof(completion));
    if (completion.user_data == wake_id) clear_wake();
    else completions[count++] = {static_cast<std::uint32_t>(completion.user_data), completion.res};
  }
  store_release(cq_head_, head);
  under_way_ -= count;
  return count;
}

int uring_refusal() {
  io_uring_params parameters{};
  const int fd = setup_best(1, parameters);
  if (fd < 0) return errno;
  ::close(fd);
  constexpr std::uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_EXT_ARG;
  return (parameters.features & needed) == needed ? 0 : ENOSYS;
}

int create_wake_fd() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw_errno("eventfd");
  return fd;
}

void signal_wake_fd(int fd) {
  const std::uint64_t one = 1;
  // Only a full counter can refuse this, and then the sleeper is awake already.
  (void)!::write(fd, &one, sizeof(one));
}

}  // namespace moestream::io

#else

#include <cerrno>
#include <system_error>

namespace moestream::io {

namespace {
[[noreturn]] void refuse() { throw std::system_error(ENOSYS, std::generic_category(), "io_uring is Linux's"); }
}  // namespace

Uring::Uring(unsigned, std::span<const int>, std::span<const std::span<std::byte>>, int wake_fd) : wake_fd_(wake_fd) {
  refuse();
}
Uring::~Uring() = default;
void Uring::queue_read(std::uint32_t, std::size_t, std::uint64_t, std::size_t, std::size_t, std::uint32_t) { refuse(); }
std::size_t Uring::wait(std::uint32_t, std::span<UringCompletion>) { refuse(); }
int uring_refusal() { return ENOSYS; }
int create_wake_fd() { refuse(); }
void signal_wake_fd(int) { refuse(); }

}  // namespace moestream::io

#endif
