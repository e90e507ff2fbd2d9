// Memory that is counted before it is taken, and costs nothing until it is touched.
//
// Every buffer of the backend is a slice of one of three mappings, and the layout that names the slices is what both
// `footprint` and the allocation read: the plan and the memory cannot drift apart. Pages come zeroed from the system
// on first touch, so a KV cache for 262,144 positions (16 GB for the largest model) occupies only what a conversation
// fills.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "moestream/invariant.h"

namespace moestream::cpu {

// Apple Silicon's pages, a multiple of every other system's. A GPU is given whole ones of them, so a mapping owns whole ones.
inline constexpr std::size_t kLongestPageBytes = 16384;

// Throws std::length_error when the product does not fit 2^53, the largest size the other language can name.
std::size_t product(std::initializer_list<std::size_t> factors);

template <class Value>
struct Slice {
  std::size_t byte_offset = 0;
  std::size_t count = 0;
};

class Layout {
 public:
  template <class Value>
  Slice<Value> take(std::initializer_list<std::size_t> shape) {
    const Slice<Value> slice{bytes_, product(shape)};
    grow(product({slice.count, sizeof(Value)}));
    return slice;
  }

  std::size_t bytes() const { return bytes_; }

 private:
  void grow(std::size_t bytes);

  std::size_t bytes_ = 0;
};

class Memory {
 public:
  explicit Memory(std::size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <class Value>
  std::span<Value> at(Slice<Value> slice) const {
    invariant(slice.byte_offset + slice.count * sizeof(Value) <= bytes_, "a slice lies inside its memory");
    return {reinterpret_cast<Value*>(base_ + slice.byte_offset), slice.count};
  }

  std::span<std::byte> all() const { return {base_, bytes_}; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace moestream::cpu
