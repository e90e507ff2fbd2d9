// Anonymous mappings behind memory.h. Slices start on cache lines (64 bytes), so threads that write neighbouring
// buffers do not share one. A mapping owns every page it touches, counted in the longest pages of a supported system:
// a GPU is given whole pages and may write to them.
#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <stdexcept>

namespace moestream::cpu {
namespace {

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kMaxBytes = std::size_t{1} << 53;

std::size_t whole_pages(std::size_t bytes) { return (bytes + kLongestPageBytes - 1) / kLongestPageBytes * kLongestPageBytes; }

}  // namespace

std::size_t product(std::initializer_list<std::size_t> factors) {
  std::size_t result = 1;
  for (const std::size_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result) || result > kMaxBytes) {
      throw std::length_error("a buffer of this configuration is too large");
    }
  }
  return result;
}

void Layout::grow(std::size_t bytes) {
  const std::size_t rounded = (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
  if (rounded > kMaxBytes - bytes_) throw std::length_error("the buffers of this configuration are too large");
  bytes_ += rounded;
}

Memory::Memory(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
#if defined(MAP_NORESERVE)
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif
  const std::size_t needed = whole_pages(bytes);
  void* const mapped = mmap(nullptr, needed + kLongestPageBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(mapped);
  const std::size_t before = whole_pages(reinterpret_cast<std::uintptr_t>(begin)) - reinterpret_cast<std::uintptr_t>(begin);
  base_ = begin + before;
  if (before > 0) munmap(begin, before);
  if (before < kLongestPageBytes) munmap(base_ + needed, kLongestPageBytes - before);
}

Memory::~Memory() {
  if (base_ != nullptr) munmap(base_, whole_pages(bytes_));
}

}  // namespace moestream::cpu
