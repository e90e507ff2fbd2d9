#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>
#include <system_error>

namespace moestream::io {

namespace {

std::span<std::byte> whole_units(std::span<std::byte> memory, std::uintptr_t unit) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data());
  const auto first = (begin + unit - 1) / unit * unit;
  const auto last = (begin + memory.size()) / unit * unit;
  if (last <= first) return {};
  return {reinterpret_cast<std::byte*>(first), last - first};
}

std::span<std::byte> whole_pages(std::span<std::byte> memory) {
  return whole_units(memory, static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE)));
}

struct Mapping {
  std::span<std::byte> memory;
  std::size_t huge_bytes;
};

std::size_t overlap_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  const auto first = std::max(a.data(), b.data());
  const auto last = std::min(a.data() + a.size(), b.data() + b.size());
  return first < last ? static_cast<std::size_t>(last - first) : 0;
}

// Calls `visit` with every mapping of this process that has huge pages. False where the system does not tell.
template <typename Visit>
bool visit_huge_mappings(const Visit& visit) {
#ifdef __linux__
  std::ifstream maps("/proc/self/smaps");
  Mapping mapping{};
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0;
    unsigned long last = 0;
    long kilobytes = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      mapping.memory = {reinterpret_cast<std::byte*>(first), last - first};
    } else if (std::sscanf(line.c_str(), "AnonHugePages: %ld kB", &kilobytes) == 1 && kilobytes > 0) {
      mapping.huge_bytes = static_cast<std::size_t>(kilobytes) * 1024;
      visit(mapping);
    }
  }
  return maps.eof();
#else
  (void)visit;
  return false;
#endif
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
  std::size_t total_bytes = 0;
  const bool told = visit_huge_mappings([&](const Mapping& mapping) {
    if (overlap_bytes(memory, mapping.memory) > 0) total_bytes += mapping.huge_bytes;
  });
  return told ? static_cast<std::int64_t>(total_bytes) : -1;
}

std::size_t huge_page_size() {
  std::size_t size_bytes = 0;
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
  return file >> size_bytes ? size_bytes : 0;
}

// A mapping tells how many of its pages are huge, not which; so only one that is huge throughout counts.
std::vector<std::span<std::byte>> huge_parts(std::span<const std::span<std::byte>> pieces) {
  std::vector<std::span<std::byte>> parts(pieces.size());
  const std::size_t unit = huge_page_size();
  if (unit == 0) return parts;
  std::vector<std::size_t> huge_bytes(pieces.size());
  for (std::size_t index = 0; index < pieces.size(); ++index) parts[index] = whole_units(pieces[index], unit);
  visit_huge_mappings([&](const Mapping& mapping) {
    const auto whole = whole_units(mapping.memory, unit);
    if (whole.size() != mapping.huge_bytes) return;
    for (std::size_t index = 0; index < parts.size(); ++index) huge_bytes[index] += overlap_bytes(parts[index], whole);
  });
  for (std::size_t index = 0; index < parts.size(); ++index) {
    if (huge_bytes[index] != parts[index].size()) parts[index] = {};
  }
  return parts;
}

bool release(std::span<std::byte> memory) {
  if (memory.empty()) return true;
  // Locked pages are not given back.
  (void)::munlock(memory.data(), memory.size());
  return ::madvise(memory.data(), memory.size(), MADV_DONTNEED) == 0;
}

}  // namespace moestream::io
