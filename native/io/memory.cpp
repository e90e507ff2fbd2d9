#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <system_error>

namespace moestream::io {

namespace {

std::span<std::byte> whole_pages(std::span<std::byte> memory) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const auto first = (begin + page - 1) / page * page;
  const auto last = (begin + memory.size()) / page * page;
  if (last <= first) return {};
  return {reinterpret_cast<std::byte*>(first), last - first};
}

// Writing back the byte that is there makes a page present without changing it. Only before any reader runs.
void touch_every_page(std::span<std::byte> memory) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  for (std::size_t at = 0; at < memory.size(); at += page) {
    auto* byte = reinterpret_cast<volatile unsigned char*>(memory.data() + at);
    *byte = *byte;
  }
}

}  // namespace

void prefault(std::span<std::byte> memory) {
  const auto pages = whole_pages(memory);
  if (pages.empty()) return;
#ifdef MADV_HUGEPAGE
  // Advice: a kernel without transparent huge pages refuses it, and the slab is then merely slower.
  (void)::madvise(pages.data(), pages.size(), MADV_HUGEPAGE);
#endif
#ifdef MADV_POPULATE_WRITE
  if (::madvise(pages.data(), pages.size(), MADV_POPULATE_WRITE) == 0) return;
  if (errno == ENOMEM) throw std::system_error(errno, std::generic_category(), "no memory for the slab");
#endif
  touch_every_page(pages);
}

void lock_in_memory(std::span<const std::byte> memory) {
  if (::mlock(memory.data(), memory.size()) != 0) throw std::system_error(errno, std::generic_category(), "mlock");
}

std::int64_t huge_page_bytes(std::span<const std::byte> memory) {
#ifdef __linux__
  std::ifstream maps("/proc/self/smaps");
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const auto end = begin + memory.size();
  std::int64_t total_bytes = 0;
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0;
    unsigned long last = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      inside = first < end && last > begin;
    } else if (long kilobytes = 0; inside && std::sscanf(line.c_str(), "AnonHugePages: %ld kB", &kilobytes) == 1) {
      total_bytes += kilobytes * 1024;
    }
  }
  return maps.eof() ? total_bytes : -1;
#else
  (void)memory;
  return -1;
#endif
}

bool release(std::span<std::byte> memory) {
  if (memory.empty()) return true;
  // Locked pages are not given back.
  (void)::munlock(memory.data(), memory.size());
  return ::madvise(memory.data(), memory.size(), MADV_DONTNEED) == 0;
}

}  // namespace moestream::io
