// Every instruction set's kernels against the portable ones, without Node: run by scripts/test-neon.sh under an
// emulator, on processors that the main tests do not meet. Prints what differs and ends with 1, or says what it did.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "../../native/cpu/dequantize.h"
#include "../../native/cpu/fingerprint.h"
#include "../../native/cpu/matmul.h"
#include "../../native/cpu/memory.h"
#include "../../native/cpu/vector_kernels.h"
#include "random_blocks.h"

namespace {

using namespace moestream::cpu;

using moestream::test::next_float;

// The first byte is skipped, so that nothing is aligned.
std::vector<std::uint8_t> random_blocks(const TypeTraits& type, std::size_t blocks, std::uint64_t seed) {
  std::vector<std::uint8_t> bytes(blocks * (type.block_bytes + 2 * type.side_bytes) + 1);
  moestream::test::fill_blocks(std::span(bytes).subspan(1), type, seed);
  return bytes;
}

struct Problem {
  Matrix matrix;
  std::vector<float> values;
  std::vector<std::uint32_t> order;
};

std::vector<float> product(const Problem& problem, const ProductKernels* kernels) {
  const std::size_t cols = problem.matrix.cols;
  std::vector<float> out(problem.order.size() * problem.matrix.rows);
  ThreadPool pool(2, 500);
  Layout layout;
  const auto floats = layout.take<float>({Multiplier::buffer_floats(2, cols)});
  const auto bytes = layout.take<std::byte>({FastMultiplier::buffer_bytes(problem.order.size(), cols)});
  const Memory memory(layout.bytes());
  const Multiplier multiplier = kernels == nullptr
                                    ? Multiplier(pool, memory.at(floats), cols)
                                    : Multiplier(FastMultiplier(pool, memory.at(bytes), *kernels), pool);
  const std::array<Product, 1> products{{{problem.matrix, out.data()}}};
  multiplier.multiply(Activations(problem.values, cols), {problem.order, problem.order}, products);
  return out;
}

// Root of the mean square of the difference, relative to the expected values.
double distance(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0;
  double size = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    difference += (double{found[i]} - double{expected[i]}) * (double{found[i]} - double{expected[i]});
    size += double{expected[i]} * double{expected[i]};
  }
  return difference / size;
}

bool check(const TypeTraits& type, std::size_t cols, std::size_t rows, std::size_t inputs) {
  std::uint64_t state = cols + rows;
  const auto blocks = random_blocks(type, rows * cols / type.block_values, state);
  Problem problem{joined_matrix(type.type, cols, rows, blocks.data() + 1), std::vector<float>(inputs * cols), {}};
  for (float& each : problem.values) each = next_float(state);
  problem.order.resize(inputs);
  std::iota(problem.order.begin(), problem.order.end(), 0u);
  const std::span sets = all_product_kernels();
  const std::vector<float> portable = product(problem, sets.back());
  bool good = distance(portable, product(problem, nullptr)) < 4e-4;
  if (!good) std::printf("%s: far from the exact product\n", type.name.data());
  for (const ProductKernels* set : sets) {
    const std::vector<float> found = product(problem, set);
    const bool same = std::memcmp(found.data(), portable.data(), found.size() * sizeof(float)) == 0;
    if (!same) std::printf("%s: %s differs from portable\n", type.name.data(), set->name);
    good = good && same;
  }
  return good;
}

template <class Value>
std::span<const std::uint8_t> bytes_of(const std::vector<Value>& values) {
  return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * sizeof(Value)};
}

// Keys and values of every type, kept and read: one number for all bits that come out.
std::uint64_t kv_fingerprint(const VectorKernels& set) {
  Fingerprint sum;
  std::uint64_t state = 5;
  const auto random = [&state] { return next_float(state); };
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    const std::size_t odd = type == KvType::kQ8_0 ? 64 : 72;
    for (const std::size_t width : {std::size_t{32}, std::size_t{160}, odd}) {
      constexpr std::size_t kPositions = 71;
      const std::size_t bytes = row_bytes(tensor_type_of(type), width);
      std::vector<std::uint8_t> stored(kPositions * bytes);
      std::vector<float> query(width), weights(kPositions), products(kPositions), total(width), row(width);
      for (float& each : query) each = random();
      for (std::size_t p = 0; p < kPositions; ++p) {
        weights[p] = random();
        // From the largest half floats to the smallest, and beyond.
        const float size = 65536.0f / static_cast<float>(1ull << (p * 3 / 4));
        for (float& each : row) each = random() * size;
        set.kv(type).store(row.data(), width, stored.data() + p * bytes);
      }
      const KvRows rows{stored.data(), bytes, kPositions, width};
      set.kv(type).dot_rows(query.data(), rows, products.data());
      set.kv(type).sum_rows(rows, weights.data(), total.data());
      sum.add(std::span<const std::uint8_t>(stored));
      sum.add(bytes_of(products));
      sum.add(bytes_of(total));
    }
  }
  return sum.value();
}

// What every processor gives.
constexpr std::uint64_t kKvFingerprint = 0x8f2798fc795e7737;

}  // namespace

int main() {
  bool good = true;
  for (const VectorKernels* set : all_vector_kernels()) {
    const std::uint64_t found = kv_fingerprint(*set);
    if (found == kKvFingerprint) continue;
    std::printf("keys and values: %s gives %016llx\n", set->name, static_cast<unsigned long long>(found));
    good = false;
  }
  for (const TypeTraits& type : supported_types()) {
    const std::size_t tail = type.block_values == 256 ? 0 : type.block_values <= 32 ? 96 : 128;
    good = check(type, 256 + tail, 5, 1) && good;
    good = check(type, 768 + tail, 19, 6) && good;
    good = check(type, 512, 3, 35) && good;
  }
  std::printf("%s: %zu types, sets:", good ? "equal" : "DIFFERENT", supported_types().size());
  for (const ProductKernels* set : all_product_kernels()) std::printf(" %s", set->name);
  std::printf("\n");
  return good ? 0 : 1;
}
