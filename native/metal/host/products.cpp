// Dispatching the kernels of matvec.metal, matmul.metal and affine.metal.
#include "products.h"

#include <algorithm>
#include <bit>
#include <cctype>

#include "../kernels/arguments.h"

namespace moestream::metal {
namespace {

using cpu::TensorType;

constexpr std::uint32_t id_of(TensorType type) { return static_cast<std::uint32_t>(type); }

std::uint32_t groups_of(std::size_t count, std::uint32_t per_group) {
  return static_cast<std::uint32_t>((count + per_group - 1) / per_group);
}

// Whether gate and up take kernels of their own, and a third one that multiplies them.
bool apart(const FeedForward& block) {
  return block.gate.type != block.up.type || block.in.count > kMatvecInputs;
}

// The kernels of affine matrices read whole words from here on.
Place aligned(const Place& place) { return {place.buffer, place.offset / gpu::kAffineAlign * gpu::kAffineAlign}; }

std::uint32_t skews_of(const GpuMatrix& matrix) {
  const auto skew = [](const Place& place) { return static_cast<std::uint32_t>(place.offset % gpu::kAffineAlign); };
  return skew(matrix.place) | skew(matrix.scales) << 8 | skew(matrix.biases) << 16;
}

gpu::AffineArguments affine_arguments(TensorType type) {
  const unsigned group = cpu::affine_of(type).group;
  return {.group_shift = static_cast<std::uint32_t>(std::countr_zero(group)), .unused = {}, .skews = {}};
}

}  // namespace

std::string kernel_name(TensorType type) {
  if (cpu::is_affine(type)) return "affine" + std::to_string(cpu::affine_of(type).bits);
  std::string name(cpu::traits_of(type).name);
  std::ranges::transform(name, name.begin(), [](unsigned char each) { return static_cast<char>(std::tolower(each)); });
  return name;
}

void bind_matrix(Dispatch& dispatch, const GpuMatrix& matrix, unsigned side) {
  if (!cpu::is_affine(matrix.type)) {
    dispatch.buffer(0, matrix.place);
    return;
  }
  gpu::AffineArguments arguments = affine_arguments(matrix.type);
  arguments.skews[0] = skews_of(matrix);
  dispatch.buffer(0, aligned(matrix.place))
      .buffer(side, aligned(matrix.scales))
      .buffer(side + 1, aligned(matrix.biases))
      .arguments(side + 2, arguments);
}

void Products::prepare(TensorType type) {
  if (types_.contains(id_of(type))) return;
  const std::string name = kernel_name(type);
  const std::string tensor = "tensor_matmul_" + name;
  types_[id_of(type)] = {
      .matvec = &kernels_.pipeline("matvec_" + name),
      .gated = &kernels_.pipeline("gated_" + name),
      .matmul = &kernels_.pipeline(kernels_.has(tensor) ? tensor : "matmul_" + name),
  };
  swiglu_ = &kernels_.pipeline("swiglu");
}

const Products::TypeKernels& Products::of(TensorType type) const { return types_.at(id_of(type)); }

void Products::matvec(Commands& commands, const Place& input, const RowMap& map,
                      std::span<const Product> same_type) const {
  const GpuMatrix& first = same_type.front().matrix;
  gpu::MatvecArguments arguments{.cols = first.cols,
                                 .segments = static_cast<std::uint32_t>(same_type.size()),
                                 .mapped = map.mapped ? 1u : 0u,
                                 .unused = 0,
                                 .rows = {},
                                 .first_group = {}};
  Dispatch dispatch(commands, *of(first.type).matvec);
  const bool affine = cpu::is_affine(first.type);
  gpu::AffineArguments arrays = affine ? affine_arguments(first.type) : gpu::AffineArguments{};
  std::uint32_t groups = 0;
  for (std::uint32_t s = 0; s < gpu::kMaxSegments; ++s) {
    // A segment that is not there is bound as the last one, and has no groups.
    const Product& each = same_type[std::min<std::size_t>(s, same_type.size() - 1)];
    const GpuMatrix& matrix = each.matrix;
    dispatch.buffer(s, affine ? aligned(matrix.place) : matrix.place).buffer(5 + s, each.output);
    if (affine) {
      dispatch.buffer(12 + s, aligned(matrix.scales)).buffer(16 + s, aligned(matrix.biases));
      arrays.skews[s] = skews_of(matrix);
    }
    if (s >= same_type.size()) continue;
    arguments.rows[s] = matrix.rows;
    arguments.first_group[s] = groups;
    groups += groups_of(matrix.rows, gpu::kMatvecRows);
  }
  dispatch.buffer(4, input).arguments(9, arguments).buffer(10, map.from).buffer(11, map.to);
  if (affine) dispatch.arguments(20, arrays);
  dispatch.run({groups, map.count, 1}, gpu::kMatvecThreads);
}

void Products::matmul(Commands& commands, const Place& input, const RowMap& map, const Product& product) const {
  const gpu::MatmulArguments arguments{.cols = product.matrix.cols,
                                       .rows = product.matrix.rows,
                                       .inputs = static_cast<std::uint32_t>(map.count),
                                       .mapped = map.mapped ? 1u : 0u};
  Dispatch dispatch(commands, *of(product.matrix.type).matmul);
  bind_matrix(dispatch, product.matrix, 6);
  dispatch.buffer(1, input)
      .buffer(2, product.output)
      .arguments(3, arguments)
      .buffer(4, map.from)
      .buffer(5, map.to)
      .run({groups_of(product.matrix.rows, gpu::kMatmulRows), groups_of(map.count, gpu::kMatmulInputs), 1},
           gpu::kMatmulThreads);
}

void Products::multiply(Commands& commands, const Place& input, const RowMap& map,
                        std::span<const Product> products) const {
  if (map.count > kMatvecInputs) {
    for (const Product& each : products) matmul(commands, input, map, each);
    return;
  }
  while (!products.empty()) {
    std::size_t same = 1;
    while (same < products.size() && same < gpu::kMaxSegments &&
           products[same].matrix.type == products.front().matrix.type) {
      ++same;
    }
    matvec(commands, input, map, products.first(same));
    products = products.subspan(same);
  }
}

void Products::gated(Commands& commands, const Place& input, const FeedForward& block) const {
  const gpu::GatedArguments arguments{.cols = block.gate.cols,
                                      .rows = block.gate.rows,
                                      .mapped = block.in.mapped ? 1u : 0u,
                                      .unused = 0};
  Dispatch dispatch(commands, *of(block.gate.type).gated);
  if (cpu::is_affine(block.gate.type)) {
    gpu::AffineArguments arrays = affine_arguments(block.gate.type);
    arrays.skews[0] = skews_of(block.gate);
    arrays.skews[1] = skews_of(block.up);
    dispatch.buffer(0, aligned(block.gate.place))
        .buffer(1, aligned(block.up.place))
        .buffer(7, aligned(block.gate.scales))
        .buffer(8, aligned(block.gate.biases))
        .buffer(9, aligned(block.up.scales))
        .buffer(10, aligned(block.up.biases))
        .arguments(11, arrays);
  } else {
    dispatch.buffer(0, block.gate.place).buffer(1, block.up.place);
  }
  dispatch.buffer(2, input)
      .buffer(3, block.inner)
      .arguments(4, arguments)
      .buffer(5, block.in.from)
      .buffer(6, block.in.to)
      .run({groups_of(block.gate.rows, gpu::kGatedRows), block.in.count, 1}, gpu::kMatvecThreads);
}

void Products::swiglu(Commands& commands, const FeedForward& block) const {
  const std::size_t count = block.in.count * block.gate.rows;
  const gpu::ElementArguments arguments{.count = static_cast<std::uint32_t>(count), .unused = {}};
  Dispatch(commands, *swiglu_)
      .buffer(0, block.inner_gate)
      .buffer(1, block.inner_up)
      .buffer(2, block.inner)
      .arguments(3, arguments)
      .run({groups_of(count, gpu::kElementThreads), 1, 1}, gpu::kElementThreads);
}

void Products::feed_forward(Commands& commands, const Place& input, std::span<const FeedForward> blocks) const {
  for (const FeedForward& each : blocks) {
    if (apart(each)) {
      const std::array<Product, 2> products{{{each.gate, each.inner_gate}, {each.up, each.inner_up}}};
      multiply(commands, input, each.in, products);
    } else {
      gated(commands, input, each);
    }
  }
  commands.barrier();
  if (std::ranges::any_of(blocks, apart)) {
    for (const FeedForward& each : blocks) {
      if (apart(each)) swiglu(commands, each);
    }
    commands.barrier();
  }
  for (const FeedForward& each : blocks) {
    const std::array<Product, 1> product{{{each.down, each.output}}};
    multiply(commands, each.inner, each.out, product);
  }
}

}  // namespace moestream::metal
