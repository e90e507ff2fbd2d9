// Joining pieces of memory to windows, and finding the window of an address.
#include "mapped_memory.h"

#include <algorithm>
#include <stdexcept>

#include "../../cpu/memory.h"

namespace moestream::metal {
namespace {

constexpr std::uintptr_t kPageBytes = cpu::kLongestPageBytes;

std::uintptr_t page_down(std::uintptr_t address) { return address / kPageBytes * kPageBytes; }
std::uintptr_t page_up(std::uintptr_t address) { return page_down(address + kPageBytes - 1); }

}  // namespace

void MappedMemory::add(const void* memory, std::size_t bytes) {
  if (bytes == 0) return;
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(memory);
  added_.push_back({page_down(begin), page_up(begin + bytes)});
}

void MappedMemory::map() {
  std::ranges::sort(added_, {}, &Span::begin);
  std::vector<Span> joined;
  for (const Span& each : added_) {
    if (!joined.empty() && each.begin <= joined.back().end) {
      joined.back().end = std::max(joined.back().end, each.end);
    } else {
      joined.push_back(each);
    }
  }
  const std::uintptr_t longest = page_down(device_.max_buffer_bytes());
  const std::uintptr_t step = longest - std::min(longest, page_up(overlap_));
  windows_.clear();
  buffers_.clear();
  for (const Span& each : joined) {
    for (std::uintptr_t begin = each.begin; begin < each.end; begin += step) {
      const std::uintptr_t end = std::min(each.end, begin + longest);
      windows_.push_back({begin, end});
      buffers_.push_back(device_.buffer_over(reinterpret_cast<void*>(begin), end - begin));
      if (end == each.end) break;
      if (step == 0) throw std::logic_error("a tensor is longer than the device's longest buffer");
    }
  }
}

Place MappedMemory::find(const void* memory, std::size_t bytes) const {
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(memory);
  const auto after = std::ranges::upper_bound(windows_, begin, {}, &Span::begin);
  // Windows overlap, so an earlier one may hold what the nearest is too short for.
  for (auto at = after; at != windows_.begin();) {
    --at;
    if (begin + bytes <= at->end) {
      return {&buffers_[static_cast<std::size_t>(at - windows_.begin())], begin - at->begin};
    }
    if (at->end <= begin) break;
  }
  throw std::logic_error("the GPU does not see " + std::to_string(bytes) + " bytes of the backend's memory");
}

}  // namespace moestream::metal
