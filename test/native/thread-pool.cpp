// The thread pool: every item once, whatever the shares; what workers wrote is there when `run` returns; pools end at
// any moment. Made for the thread sanitizer, which sees a missing order where a machine may never show it.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../native/cpu/thread_pool.h"
#include "check.h"
#include "random_blocks.h"

namespace {

using moestream::cpu::ThreadPool;
using moestream::test::check;
using moestream::test::next_word;

constexpr std::size_t kSpins = 500;

void covers_every_item_once(std::size_t threads, std::size_t spins) {
  ThreadPool pool(threads, spins);
  check(pool.threads() == threads, "the caller counts");
  std::uint64_t state = threads;
  for (int round = 0; round < 400; ++round) {
    const std::size_t count = next_word(state) % 700;
    const std::size_t grain = next_word(state) % 40;
    // Plain memory: only the pool orders these writes before the reads below.
    std::vector<std::uint32_t> seen(count, 0);
    std::vector<std::uint64_t> per_thread(threads, 0);
    pool.run(count, grain, [&](std::size_t begin, std::size_t end, std::size_t thread) {
      for (std::size_t i = begin; i < end; ++i) ++seen[i];
      per_thread[thread] += end - begin;
    });
    check(std::ranges::all_of(seen, [](std::uint32_t each) { return each == 1; }), "every item is covered once");
    std::uint64_t total = 0;
    for (const std::uint64_t each : per_thread) total += each;
    check(total == count, "threads count their own parts");
  }
}

// A step reads what the step before wrote, from other threads.
void steps_follow_each_other(std::size_t threads, std::size_t spins) {
  ThreadPool pool(threads, spins);
  constexpr std::size_t kItems = 512;
  std::vector<std::uint64_t> values(kItems, 1);
  std::vector<std::uint64_t> next(kItems, 0);
  for (int step = 0; step < 300; ++step) {
    pool.run(kItems, 1, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) next[i] = values[i] + values[kItems - 1 - i];
    });
    std::swap(values, next);
    for (std::uint64_t& each : values) each &= 0xffff;
  }
  std::uint64_t expected = 1;
  for (int step = 0; step < 300; ++step) expected = (2 * expected) & 0xffff;
  check(std::ranges::all_of(values, [&](std::uint64_t each) { return each == expected; }), "no step reads old values");
}

void pools_end_at_any_moment() {
  for (int round = 0; round < 60; ++round) {
    ThreadPool pool(1 + static_cast<std::size_t>(round) % 5, round % 2 == 0 ? 0 : kSpins);
    std::vector<int> touched(64, 0);
    for (int run = 0; run < round % 3; ++run) {
      pool.run(touched.size(), 1, [&](std::size_t begin, std::size_t end, std::size_t) {
        for (std::size_t i = begin; i < end; ++i) touched[i] = 1;
      });
    }
  }
}

}  // namespace

int main() {
  for (const std::size_t threads : {1, 2, 3, 8}) {
    // Workers that sleep at once, and some that are still looking.
    for (const std::size_t spins : {std::size_t{0}, kSpins}) {
      covers_every_item_once(threads, spins);
      steps_follow_each_other(threads, spins);
    }
  }
  pools_end_at_any_moment();
  return moestream::test::result("thread-pool");
}
