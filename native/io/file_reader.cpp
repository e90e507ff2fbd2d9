#include "file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <system_error>

#ifdef __linux__
#include <linux/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#endif

namespace moestream::io {

namespace {

// A signal storm must not turn a read into an endless loop.
constexpr int interruptions_max = 1000;

// After a short direct read the next one starts on this boundary: the smallest that a device may ask for. Devices that
// ask for more stop short only at multiples of what they ask for.
constexpr std::size_t resume_boundary_bytes = 512;

[[noreturn]] void throw_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Closing may overwrite errno, so the caller says what went wrong.
[[noreturn]] void close_and_throw(int fd, int error, const std::string& what) {
  ::close(fd);
  throw std::system_error(error, std::generic_category(), what);
}

int open_flags(bool direct) {
#ifdef __linux__
  return O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0);
#else
  (void)direct;
  return O_RDONLY | O_CLOEXEC;
#endif
}

}  // namespace

OpenedFile open_file(const std::string& path, bool direct) {
  const int fd = ::open(path.c_str(), open_flags(direct));
  if (fd < 0) throw_errno("open " + path);
#ifdef __APPLE__
  if (direct && ::fcntl(fd, F_NOCACHE, 1) != 0) close_and_throw(fd, errno, "F_NOCACHE " + path);
#endif
  struct stat status {};
  if (::fstat(fd, &status) != 0) close_and_throw(fd, errno, "stat " + path);
  if (!S_ISREG(status.st_mode)) close_and_throw(fd, EINVAL, "stat " + path);
  return {fd, static_cast<std::uint64_t>(status.st_size)};
}

void close_file(int fd) {
  if (::close(fd) != 0 && errno != EINTR) throw_errno("close");
}

std::uint32_t direct_alignment_bytes(int fd) {
#if defined(__linux__) && defined(STATX_DIOALIGN)
  struct statx status {};
  if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0) return 0;
  if ((status.stx_mask & STATX_DIOALIGN) == 0) return 0;
  return std::max(status.stx_dio_mem_align, status.stx_dio_offset_align);
#else
  (void)fd;
  return 0;
#endif
}

std::int64_t cached_pages(int fd, std::uint64_t size_bytes, std::uint64_t samples, std::uint64_t seed) {
#if defined(__linux__) && defined(RWF_NOWAIT)
  constexpr std::uint64_t page_bytes = 4096;
  // A read that may not wait starts reading ahead all the same, megabytes where a page was asked for.
  if (::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) != 0) return -1;
  const std::uint64_t pages = (size_bytes + page_bytes - 1) / page_bytes;
  const std::uint64_t looked_at = std::min(samples, pages);
  std::minstd_rand random(static_cast<std::minstd_rand::result_type>(seed));
  std::int64_t found = 0;
  for (std::uint64_t sample = 0; sample < looked_at; ++sample) {
    const std::uint64_t first = sample * pages / looked_at;
    const std::uint64_t page = first + random() % ((sample + 1) * pages / looked_at - first);
    std::byte byte{};
    iovec one{&byte, 1};
    const ssize_t count = ::preadv2(fd, &one, 1, static_cast<off_t>(page * page_bytes), RWF_NOWAIT);
    if (count > 0) ++found;
    else if (count < 0 && errno != EAGAIN && errno != EINTR) return -1;
  }
  return found;
#else
  (void)fd, (void)size_bytes, (void)samples, (void)seed;
  return -1;
#endif
}

std::int64_t read_at(int fd, std::uint64_t file_offset, std::span<std::byte> into) {
  std::size_t resume = 0;   // where the next read starts; always on the resume boundary
  std::size_t reached = 0;  // the furthest byte read so far
  int interruptions = 0;
  while (resume < into.size()) {
    const ssize_t count = ::pread(fd, into.data() + resume, into.size() - resume,
                                  static_cast<off_t>(file_offset + resume));
    if (count < 0) {
      if ((errno == EINTR || errno == EAGAIN) && ++interruptions < interruptions_max) continue;
      return -static_cast<std::int64_t>(errno);
    }
    // Reading on from the last boundary and getting no further: the end of the file.
    if (resume + static_cast<std::size_t>(count) <= reached) break;
    reached = resume + static_cast<std::size_t>(count);
    // A direct read may only go on from a boundary, so the bytes behind the last one are read again.
    resume = reached == into.size() ? reached : reached - reached % resume_boundary_bytes;
  }
  return static_cast<std::int64_t>(reached);
}

}  // namespace moestream::io
