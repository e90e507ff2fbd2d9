// Reads through io_uring: one thread, many reads under way.
//
// With registered files and buffers a read costs 0.002 CPU-seconds per GB here, a fifth of what a pread by a thread of its
// own costs, and no thread has to be woken for it. The kernel keeps one entry per huge page of a registered buffer. One
// small page in it makes that one per 4 KiB for all of it, of which a read walks 400 and is cut in two: 0.007. So buffers
// end where huge pages do, and a read that crosses an end goes unregistered. Raw system calls: what is used is small, and
// users need not install a library.
//
// Invariant: one thread makes, feeds and drains a ring (IORING_SETUP_SINGLE_ISSUER where the kernel has it). Any thread
// may write to the wake descriptor, which ends a wait early. Nothing here decides what a short read means: results are
// handed on as the kernel gives them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moestream::io {

struct UringCompletion {
  std::uint32_t id;
  std::int32_t result;  // bytes read, or -errno
};

class Uring {
 public:
  // Throws std::system_error when the kernel has no io_uring for us (ENOSYS, EPERM, ENOMEM).
  // `wake_fd` is an eventfd, or -1 where nobody wakes.
  Uring(unsigned depth, std::span<const int> fds, std::span<const std::span<std::byte>> segments, int wake_fd);
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // Whether the kernel refused to keep our memory registered; RLIMIT_MEMLOCK may forbid it.
  bool registering_refused() const { return registering_refused_; }

  // Queues a read; it starts with the next `wait`. Never more than `depth` reads may be under way.
  void queue_read(std::uint32_t id, std::size_t file, std::uint64_t file_offset, std::size_t segment,
                  std::size_t segment_offset, std::uint32_t byte_length);

  // Starts what is queued and sleeps until a read has ended, somebody has written to the wake descriptor, or the time is
  // over. Returns how many completions it has written. Throws std::system_error when the ring itself fails.
  std::size_t wait(std::uint32_t timeout_millis, std::span<UringCompletion> completions);

 private:
  void map_rings();
  void unmap_rings() noexcept;
  void register_files();
  void register_buffers();
  void arm_wake();
  void clear_wake();
  void* next_entry();
  std::size_t drain(std::span<UringCompletion> completions);

  int ring_fd_ = -1;
  int wake_fd_;
  bool wake_armed_ = false;
  bool files_registered_ = false;
  bool registering_refused_ = false;
  unsigned to_submit_ = 0;
  std::size_t under_way_ = 0;  // reads queued whose completion nobody has seen
  std::vector<int> fds_;
  std::vector<std::span<std::byte>> segments_;
  // The registered part of every segment, often none.
  struct Registered {
    std::span<std::byte> memory;
    std::uint16_t index = 0;
  };
  std::vector<Registered> registered_;

  struct Mapping {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  Mapping rings_;
  Mapping entries_;
  std::uint32_t* sq_tail_ = nullptr;
  std::uint32_t* sq_mask_ = nullptr;
  std::uint32_t* sq_array_ = nullptr;
  std::uint32_t* cq_head_ = nullptr;
  std::uint32_t* cq_tail_ = nullptr;
  std::uint32_t* cq_mask_ = nullptr;
  std::byte* cq_entries_ = nullptr;
  std::uint32_t sq_ring_bytes_ = 0;
};

// Whether this kernel gives this process an io_uring; 0, or the errno that says why not.
int uring_refusal();

// An eventfd that ends waits; closed by the caller.
int create_wake_fd();
void signal_wake_fd(int fd);

}  // namespace moestream::io
