// How fast each kernel reads its weights, beside how fast this machine reads memory.
//
//     cmake --build build --target kernel_bench && build/kernel_bench [threads] [inputs] [set] [megabytes] [type ...]
//
// Decoding (one input) should be bound by memory: the last column is the fraction of the measured read bandwidth. With
// more inputs the figure of interest is multiply-adds. Kernels and the plain read take turns and medians are shown,
// because other processes share the machine. The matrix (192 megabytes unless told) should be larger than the caches; with
// 1 megabyte, which a core's own cache holds, the figures show what the arithmetic alone would allow.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "../../native/cpu/matmul.h"
#include "../../native/cpu/memory.h"
#include "../../test/native/random_blocks.h"

namespace {

using namespace moestream::cpu;

constexpr std::size_t kCols = 2048;
constexpr std::size_t kRepeats = 7;
constexpr std::size_t kSpins = 50;  // as the engine does unless told

double seconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

template <class Work>
double time_of(const Work& work) {
  const double start = seconds();
  work();
  return seconds() - start;
}

double median(std::vector<double> times) {
  std::ranges::sort(times);
  return times[times.size() / 2];
}

// Adds up all words, in as many sums as hide the latency of an addition; the result keeps the reads in the program.
std::uint64_t read_all(ThreadPool& pool, std::span<const std::uint8_t> bytes) {
  using Words = std::uint64_t __attribute__((vector_size(64)));
  constexpr std::size_t kPart = 4096;
  std::atomic<std::uint64_t> total{0};
  pool.run(bytes.size() / kPart, 16, [&](std::size_t begin, std::size_t end, std::size_t) {
    Words sums[4] = {};
    for (std::size_t at = begin * kPart; at < end * kPart; at += sizeof sums) {
      for (std::size_t i = 0; i < 4; ++i) {
        Words words;
        std::memcpy(&words, bytes.data() + at + i * sizeof words, sizeof words);
        __builtin_prefetch(bytes.data() + at + i * sizeof words + kPart / 2);
        sums[i] += words;
      }
    }
    const Words sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int i = 0; i < 8; ++i) total += sum[i];
  });
  return total;
}

struct Setting {
  std::size_t threads;
  std::size_t inputs;
  const ProductKernels& kernels;
};

void measure(const Setting& setting, const TypeTraits& type, std::span<std::uint8_t> bytes) {
  moestream::test::fill_blocks(bytes, type, 1);
  const std::size_t rows = bytes.size() / joined_bytes(type.type, kCols, 1);
  std::vector<float> values(setting.inputs * kCols);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 31) - 15.0f;
  std::vector<std::uint32_t> order(setting.inputs);
  std::iota(order.begin(), order.end(), 0u);
  std::vector<float> out(setting.inputs * rows);

  ThreadPool pool(setting.threads, kSpins);
  Layout layout;
  const auto slice = layout.take<std::byte>({FastMultiplier::buffer_bytes(setting.inputs, kCols)});
  const Memory memory(layout.bytes());
  const FastMultiplier multiplier(pool, memory.at(slice), setting.kernels);
  const std::array<Product, 1> product{{{joined_matrix(type.type, kCols, rows, bytes.data()), out.data()}}};

  std::vector<double> reading;
  std::vector<double> multiplying;
  for (std::size_t i = 0; i < kRepeats; ++i) {
    reading.push_back(time_of([&] { read_all(pool, bytes); }));
    multiplying.push_back(time_of([&] { multiplier.multiply(Activations(values, kCols), {order, order}, product); }));
  }
  const double used = static_cast<double>(joined_bytes(type.type, kCols, rows));
  const double read = static_cast<double>(bytes.size()) / median(reading) / 1e9;
  const double speed = used / median(multiplying) / 1e9;
  const double products = static_cast<double>(rows * kCols * setting.inputs) / median(multiplying) / 1e9;
  std::printf("%-9s %-8.*s %zu threads %3zu inputs %7.2f GB/s of %6.2f (%3.0f %%) %8.1f G multiply-adds/s\n",
              setting.kernels.name, static_cast<int>(type.name.size()), type.name.data(), setting.threads,
              setting.inputs, speed, read, 100 * speed / read, products);
  std::fflush(stdout);
}

const ProductKernels& kernels_named(const std::string& name) {
  for (const ProductKernels* each : all_product_kernels()) {
    if (name == each->name) return *each;
  }
  return product_kernels();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto number = [&](std::size_t at, std::size_t otherwise) {
    return arguments.size() > at ? static_cast<std::size_t>(std::atoi(arguments[at].c_str())) : otherwise;
  };
  const std::size_t inputs = std::max<std::size_t>(number(1, 1), 1);
  const Setting setting{std::max<std::size_t>(number(0, 1), 1), inputs,
                        kernels_named(arguments.size() > 2 ? arguments[2] : "")};
  // Many inputs take long; a sixteenth of the matrix is enough then.
  std::vector<std::uint8_t> bytes(number(3, inputs > 4 ? 12 : 192) << 20);
  for (const TypeTraits& type : supported_types()) {
    const bool wanted = arguments.size() <= 4 ||
                        std::find(arguments.begin() + 4, arguments.end(), type.name) != arguments.end();
    if (wanted) measure(setting, type, bytes);
  }
}
