// Matrix-vector products: one large matrix, and the experts of a layer one after the other.
//
// Weights repeat every kPattern rows, so that they are made in no time and checked by as many products. Enough copies
// are walked that none is still in the card's cache.
#include <array>
#include <cmath>

#include "../cpu/elementary.h"
#include "../cpu/vector_kernels.h"
#include "../metal/checks/material.h"
#include "speed.h"

namespace moestream::cuda {
namespace {

using cpu::TensorType;
using gpu::Random;
using gpu::RandomAffine;
using gpu::RandomMatrix;

constexpr std::size_t kPattern = 64;
constexpr std::size_t kWalkedBytes = std::size_t{600} << 20;

// `rows` rows on the card, the pattern again and again.
void fill(Driver& driver, const std::vector<std::uint8_t>& pattern, Address to, std::size_t rows) {
  const std::size_t row_bytes = pattern.size() / kPattern;
  driver.upload(to, pattern.data(), pattern.size());
  std::size_t done = kPattern;
  while (done < rows) {
    const std::size_t next = std::min(done, rows - done);
    driver.copy(to + done * row_bytes, to, next * row_bytes);
    done += next;
  }
}

std::vector<float> products(const RandomMatrix& pattern, const std::vector<float>& x, std::size_t inputs) {
  const std::vector<float> weights = pattern.dequantised();
  std::vector<float> expected(inputs * kPattern);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] = cpu::vector_kernels().dot(weights.data() + i % kPattern * pattern.cols,
                                            x.data() + i / kPattern * pattern.cols, pattern.cols);
  }
  return expected;
}

// Of (inputs, rows) results, each row of which is its row of the pattern.
double distance_of(const std::vector<float>& found, const std::vector<float>& expected, std::size_t rows) {
  std::vector<float> repeated(found.size());
  for (std::size_t i = 0; i < found.size(); ++i) repeated[i] = expected[i / rows * kPattern + i % rows % kPattern];
  return gpu::distance(found, repeated);
}

template <class Value>
void upload(Driver& driver, const Memory& memory, const std::vector<Value>& values) {
  driver.upload(memory.address(), values.data(), values.size() * sizeof(Value));
}

struct Shape {
  std::size_t rows;
  std::size_t cols;
};

std::string text_of(const Shape& shape) { return std::to_string(shape.rows) + " x " + std::to_string(shape.cols); }

Speed matvec(Driver& driver, Card& card, TensorType type, const Shape& shape) {
  Random random(71);
  const RandomMatrix pattern(type, shape.cols, kPattern, random);
  const std::vector<float> x = random.numbers(shape.cols);
  const std::size_t matrix_bytes = shape.rows * cpu::row_bytes(type, shape.cols);
  const std::size_t copies = std::max<std::size_t>(1, (kWalkedBytes + matrix_bytes - 1) / matrix_bytes);
  const Memory weights(driver, copies * matrix_bytes);
  for (std::size_t c = 0; c < copies; ++c) fill(driver, pattern.bytes, weights.address() + c * matrix_bytes, shape.rows);
  const Memory input(driver, x.size() * sizeof(float));
  const Memory output(driver, shape.rows * sizeof(float));
  const gpu::MatvecArguments values{static_cast<gpu::uint>(shape.cols), 1, 0, 0,
                                    {static_cast<gpu::uint>(shape.rows), 0, 0, 0}, {0, 0, 0, 0}};
  const Memory arguments(driver, sizeof values);
  upload(driver, input, x);
  driver.upload(arguments.address(), &values, sizeof values);
  Arguments bound;
  bound.buffers[4] = input.address();
  bound.buffers[5] = output.address();
  bound.buffers[9] = arguments.address();
  const std::string kernel = "matvec_" + gpu::lower_name(type);
  void* const function = card.function(kernel);
  Speed speed{kernel, text_of(shape), 0, static_cast<double>(matrix_bytes), 0, 0};
  speed.microseconds = time_of(driver, copies, [&](std::size_t i) {
    bound.buffers[0] = weights.address() + i * matrix_bytes;
    driver.launch(function, {gpu::groups_of(shape.rows, gpu::kMatvecRows), 1, 1}, gpu::kMatvecThreads, &bound);
  });
  std::vector<float> y(shape.rows);
  driver.download(y.data(), output.address(), y.size() * sizeof(float));
  speed.distance = distance_of(y, products(pattern, x, 1), shape.rows);
  return speed;
}

// Gate and up of one expert per dispatch.
Speed gated(Driver& driver, Card& card, TensorType type, const Shape& shape) {
  Random random(72);
  const RandomMatrix gate(type, shape.cols, kPattern, random);
  const RandomMatrix up(type, shape.cols, kPattern, random);
  const std::vector<float> x = random.numbers(shape.cols, 0.01f);
  const std::size_t matrix_bytes = shape.rows * cpu::row_bytes(type, shape.cols);
  const std::size_t experts = std::max<std::size_t>(1, kWalkedBytes / (2 * matrix_bytes));
  const Memory weights(driver, experts * 2 * matrix_bytes);
  for (std::size_t e = 0; e < experts; ++e) {
    fill(driver, gate.bytes, weights.address() + 2 * e * matrix_bytes, shape.rows);
    fill(driver, up.bytes, weights.address() + (2 * e + 1) * matrix_bytes, shape.rows);
  }
  const Memory input(driver, x.size() * sizeof(float));
  const Memory output(driver, shape.rows * sizeof(float));
  const gpu::GatedArguments values{static_cast<gpu::uint>(shape.cols), static_cast<gpu::uint>(shape.rows), 0, 0};
  const Memory arguments(driver, sizeof values);
  upload(driver, input, x);
  driver.upload(arguments.address(), &values, sizeof values);
  Arguments bound;
  bound.buffers[2] = input.address();
  bound.buffers[3] = output.address();
  bound.buffers[4] = arguments.address();
  const std::string kernel = "gated_" + gpu::lower_name(type);
  void* const function = card.function(kernel);
  Speed speed{kernel, text_of(shape) + ", gate and up", 0, static_cast<double>(2 * matrix_bytes), 0, 0};
  speed.microseconds = time_of(driver, experts, [&](std::size_t e) {
    bound.buffers[0] = weights.address() + 2 * e * matrix_bytes;
    bound.buffers[1] = weights.address() + (2 * e + 1) * matrix_bytes;
    driver.launch(function, {gpu::groups_of(shape.rows, gpu::kGatedRows), 1, 1}, gpu::kMatvecThreads, &bound);
  });
  std::vector<float> y(shape.rows);
  driver.download(y.data(), output.address(), y.size() * sizeof(float));
  std::vector<float> expected = products(gate, x, 1);
  const std::vector<float> other = products(up, x, 1);
  for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = cpu::silu(expected[i]) * other[i];
  speed.distance = distance_of(y, expected, shape.rows);
  return speed;
}

Speed matmul(Driver& driver, Card& card, TensorType type, const Shape& shape, std::size_t inputs) {
  Random random(73);
  const RandomMatrix pattern(type, shape.cols, kPattern, random);
  const std::vector<float> x = random.numbers(inputs * shape.cols);
  const Memory weights(driver, shape.rows * cpu::row_bytes(type, shape.cols));
  fill(driver, pattern.bytes, weights.address(), shape.rows);
  const Memory input(driver, x.size() * sizeof(float));
  const Memory output(driver, inputs * shape.rows * sizeof(float));
  const gpu::MatmulArguments values{static_cast<gpu::uint>(shape.cols), static_cast<gpu::uint>(shape.rows),
                                    static_cast<gpu::uint>(inputs), 0};
  const Memory arguments(driver, sizeof values);
  upload(driver, input, x);
  driver.upload(arguments.address(), &values, sizeof values);
  Arguments bound;
  bound.buffers[0] = weights.address();
  bound.buffers[1] = input.address();
  bound.buffers[2] = output.address();
  bound.buffers[3] = arguments.address();
  const std::string kernel = "matmul_" + gpu::lower_name(type);
  void* const function = card.function(kernel);
  Speed speed{kernel, text_of(shape) + ", " + std::to_string(inputs) + " inputs", 0,
              static_cast<double>(weights.bytes()),
              2.0 * static_cast<double>(shape.rows * shape.cols * inputs), 0};
  speed.microseconds = time_of(driver, 2, [&](std::size_t) {
    driver.launch(function,
                  {gpu::groups_of(shape.rows, gpu::kMatmulRows), gpu::groups_of(inputs, gpu::kMatmulInputs), 1},
                  gpu::kMatmulThreads, &bound);
  });
  std::vector<float> y(inputs * shape.rows);
  driver.download(y.data(), output.address(), y.size() * sizeof(float));
  speed.distance = distance_of(y, products(pattern, x, inputs), shape.rows);
  return speed;
}

// The large product of an affine type, its scales and biases beside it.
Speed affine(Driver& driver, Card& card, TensorType type, const Shape& shape) {
  Random random(74);
  const RandomAffine pattern(type, shape.cols, kPattern, {}, random);
  const std::vector<float> x = random.numbers(shape.cols);
  const std::size_t code_bytes = shape.rows * cpu::row_bytes(type, shape.cols);
  const std::size_t side_bytes = shape.rows * cpu::side_row_bytes(type, shape.cols);
  const std::size_t matrix_bytes = code_bytes + 2 * side_bytes;
  const std::size_t copies = std::max<std::size_t>(1, (kWalkedBytes + matrix_bytes - 1) / matrix_bytes);
  const Memory weights(driver, copies * matrix_bytes);
  for (std::size_t c = 0; c < copies; ++c) {
    const Address at = weights.address() + c * matrix_bytes;
    fill(driver, pattern.codes, at, shape.rows);
    fill(driver, pattern.scales, at + code_bytes, shape.rows);
    fill(driver, pattern.biases, at + code_bytes + side_bytes, shape.rows);
  }
  const Memory input(driver, x.size() * sizeof(float));
  const Memory output(driver, shape.rows * sizeof(float));
  const gpu::MatvecArguments values{static_cast<gpu::uint>(shape.cols), 1, 0, 0,
                                    {static_cast<gpu::uint>(shape.rows), 0, 0, 0}, {0, 0, 0, 0}};
  const gpu::AffineArguments arrays{pattern.group_shift(), {}, {}};
  const Memory arguments(driver, sizeof values);
  const Memory array_arguments(driver, sizeof arrays);
  upload(driver, input, x);
  driver.upload(arguments.address(), &values, sizeof values);
  driver.upload(array_arguments.address(), &arrays, sizeof arrays);
  Arguments bound;
  bound.buffers[4] = input.address();
  bound.buffers[5] = output.address();
  bound.buffers[9] = arguments.address();
  bound.buffers[20] = array_arguments.address();
  const std::string kernel = "matvec_" + gpu::lower_name(type);
  void* const function = card.function(kernel);
  Speed speed{kernel, text_of(shape), 0, static_cast<double>(matrix_bytes), 0, 0};
  speed.microseconds = time_of(driver, copies, [&](std::size_t i) {
    bound.buffers[0] = weights.address() + i * matrix_bytes;
    bound.buffers[12] = bound.buffers[0] + code_bytes;
    bound.buffers[16] = bound.buffers[12] + side_bytes;
    driver.launch(function, {gpu::groups_of(shape.rows, gpu::kMatvecRows), 1, 1}, gpu::kMatvecThreads, &bound);
  });
  std::vector<float> y(shape.rows);
  driver.download(y.data(), output.address(), y.size() * sizeof(float));
  speed.distance = distance_of(y, pattern.times(x), shape.rows);
  return speed;
}

}  // namespace

void add_product_cases(std::vector<SpeedCase>& cases) {
  constexpr Shape kLarge{65536, 4096};
  constexpr Shape kInner{1024, 4096};  // gate and up of an expert
  constexpr Shape kOuter{4096, 1024};  // its down
  for (const cpu::TypeTraits& traits : cpu::supported_types()) {
    const TensorType type = traits.type;
    if (cpu::is_affine(type)) continue;
    const std::string name = gpu::lower_name(type);
    cases.push_back({"matvec_" + name, [=](Driver& driver, Card& card) { return matvec(driver, card, type, kLarge); }});
    cases.push_back({"gated_" + name, [=](Driver& driver, Card& card) { return gated(driver, card, type, kInner); }});
    cases.push_back({"matvec_" + name, [=](Driver& driver, Card& card) { return matvec(driver, card, type, kOuter); }});
  }
  for (const unsigned bits : {2u, 3u, 4u, 5u, 6u, 8u}) {
    const TensorType type = cpu::affine_type(bits, 64);
    for (const Shape& shape : {kLarge, kOuter}) {
      cases.push_back({"matvec_" + gpu::lower_name(type),
                       [=](Driver& driver, Card& card) { return affine(driver, card, type, shape); }});
    }
  }
  for (const TensorType type : {TensorType::F32, TensorType::Q8_0, TensorType::Q4_K, TensorType::IQ3_XXS}) {
    cases.push_back({"matmul_" + gpu::lower_name(type), [=](Driver& driver, Card& card) {
                       return matmul(driver, card, type, {4096, 4096}, 128);
                     }});
  }
}

}  // namespace moestream::cuda
