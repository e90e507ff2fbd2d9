// A 64-bit sum over bytes that tells two of them apart; not for use against people who forge them.
//
// Each of four lanes takes every fourth word with steps that can be undone, so a change within one word always changes
// the sum. Reads 32 bytes at a time: a saved state of hundreds of megabytes costs what copying it does.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace moestream::cpu {

class Fingerprint {
 public:
  // Also tells apart how the bytes were divided into calls.
  void add(std::span<const std::uint8_t> bytes) {
    std::size_t at = 0;
    for (; bytes.size() - at >= kBlock; at += kBlock) take(bytes.data() + at);
    if (at < bytes.size()) {
      std::uint8_t rest[kBlock] = {};
      std::memcpy(rest, bytes.data() + at, bytes.size() - at);
      take(rest);
    }
    add(bytes.size());
  }

  void add(std::uint64_t word) { lanes_[0] = step(lanes_[0], word); }

  std::uint64_t value() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t lane : lanes_) sum = step(sum, lane);
    return sum ^ (sum >> 32);
  }

 private:
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kBlock = kLanes * sizeof(std::uint64_t);

  // The multiplier is odd: every step is a permutation of the words.
  static std::uint64_t step(std::uint64_t sum, std::uint64_t word) {
    return std::rotl((sum ^ word) * 0xd6e8feb86659fd93u, 29) + 1;
  }

  void take(const std::uint8_t* block) {
    std::uint64_t words[kLanes];
    std::memcpy(words, block, kBlock);
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes_[lane] = step(lanes_[lane], words[lane]);
  }

  std::uint64_t lanes_[kLanes] = {1, 2, 3, 4};
};

}  // namespace moestream::cpu
