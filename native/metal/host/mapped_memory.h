// The GPU's view of memory that is ours: slab, dense weights, key-value cache.
//
// Nothing is copied: a Metal buffer is laid over the whole pages around a piece of memory (16 KiB on Apple Silicon; pages
// that hold a mapped byte are mapped whole). Pieces that share or adjoin pages become one buffer. A device limits the
// length of a buffer, so longer pieces get several, which overlap by `overlap` bytes: anything no longer than that lies
// in one of them whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "metal.h"

namespace moestream::metal {

struct Place {
  const Buffer* buffer = nullptr;
  std::size_t offset = 0;
};

class MappedMemory {
 public:
  MappedMemory(const Device& device, std::size_t overlap) : device_(device), overlap_(overlap) {}

  // The memory must outlive this object and every command buffer that uses it.
  void add(const void* memory, std::size_t bytes);
  // Makes the buffers; adding again afterwards starts a new set of pieces.
  void map();
  // Throws std::logic_error when the bytes are in no piece, or longer than `overlap`.
  Place find(const void* memory, std::size_t bytes) const;
  const std::vector<Buffer>& buffers() const { return buffers_; }

 private:
  struct Span {
    std::uintptr_t begin;
    std::uintptr_t end;
  };

  const Device& device_;
  std::size_t overlap_;
  std::vector<Span> added_;
  std::vector<Span> windows_;  // sorted; windows_[i] is what buffers_[i] covers
  std::vector<Buffer> buffers_;
};

}  // namespace moestream::metal
