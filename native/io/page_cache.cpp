#include "page_cache.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#ifdef __linux__
#include <sys/syscall.h>
#endif

namespace moestream::io {

namespace {

#ifdef __linux__
// The kernel's cachestat (6.5 and newer), declared here because headers are older than kernels.
constexpr long cachestat_call = 451;
struct CachestatRange {
  std::uint64_t offset;
  std::uint64_t length;
};
struct Cachestat {
  std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
using ResidencyByte = unsigned char;
#else
using ResidencyByte = char;
#endif

// Address space and one byte per page are all that a window costs.
constexpr std::uint64_t window_bytes = std::uint64_t{1} << 30;

std::int64_t cached_by_mincore(int fd, std::uint64_t size_bytes, std::uint64_t page_bytes) {
  std::vector<ResidencyByte> pages;
  std::uint64_t resident = 0;
  for (std::uint64_t at = 0; at < size_bytes; at += window_bytes) {
    const std::uint64_t length = std::min(window_bytes, size_bytes - at);
    void* mapped = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(at));
    if (mapped == MAP_FAILED) return -1;
    pages.assign((length + page_bytes - 1) / page_bytes, 0);
    const bool known = ::mincore(mapped, length, pages.data()) == 0;
    ::munmap(mapped, length);
    if (!known) return -1;
    resident += static_cast<std::uint64_t>(std::ranges::count_if(pages, [](auto page) { return (page & 1) != 0; }));
  }
  return static_cast<std::int64_t>(resident * page_bytes);
}

}  // namespace

std::int64_t cached_bytes(int fd, std::uint64_t size_bytes) {
  const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
#ifdef __linux__
  CachestatRange range{0, size_bytes};
  Cachestat found{};
  if (size_bytes > 0 && ::syscall(cachestat_call, fd, &range, &found, 0) == 0) {
    return static_cast<std::int64_t>(found.cached * page_bytes);
  }
#endif
  return cached_by_mincore(fd, size_bytes, page_bytes);
}

bool drop_cached(int fd) {
#ifdef __linux__
  // Pages that were written and not stored yet cannot be forgotten. A file system that cannot sync has none of them.
  (void)::fdatasync(fd);
  return ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
#else
  (void)fd;
  return false;
#endif
}

}  // namespace moestream::io
