// Attention of several rows of two sequences, with every type of cache.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../../cpu/elementary.h"
#include "../../cpu/norm.h"
#include "../../cpu/rope.h"
#include "checks.h"
#include "material.h"

namespace moestream::gpu {
namespace {

using cpu::KvType;

struct Shape {
  KvType type;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t dim;
  std::size_t rotary_dims;
  bool gated;
  std::size_t context;
};

// The cache of a layer for two sequences, and a step's rows.
struct Attention {
  Attention(const Shape& of_shape, std::vector<RowEntry> of_rows, std::uint64_t seed)
      : shape(of_shape),
        rows(std::move(of_rows)),
        random(seed),
        row_bytes(cpu::row_bytes(cpu::tensor_type_of(shape.type), shape.dim)),
        keys(2 * shape.kv_heads * shape.context * row_bytes),
        values(keys.size()) {
    arguments.sequence_stride = shape.kv_heads * shape.context * row_bytes;
    arguments.head_stride = shape.context * row_bytes;
    arguments.row_bytes = static_cast<uint>(row_bytes);
    arguments.heads = static_cast<uint>(shape.heads);
    arguments.kv_heads = static_cast<uint>(shape.kv_heads);
    arguments.head_dim = static_cast<uint>(shape.dim);
    arguments.query_head_width = static_cast<uint>(query_head_width());
    arguments.rotary_dims = static_cast<uint>(shape.rotary_dims);
    arguments.gated = shape.gated ? 1 : 0;
    arguments.epsilon = 1e-6f;
    arguments.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
    query = random.numbers(rows.size() * shape.heads * query_head_width());
    key = random.numbers(rows.size() * shape.kv_heads * shape.dim);
    value = random.numbers(key.size());
    query_norm = random.numbers(shape.dim, 2.0f);
    key_norm = random.numbers(shape.dim, 2.0f);
    rotations.resize(rows.size() * shape.rotary_dims);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      cpu::fill_rotation(rows[r].position, shape.rotary_dims, 1e7, rotations.data() + r * shape.rotary_dims);
    }
  }

  std::size_t query_head_width() const { return shape.dim * (shape.gated ? 2 : 1); }
  std::string kind() const { return lower_name(cpu::tensor_type_of(shape.type)); }
  const cpu::KvKernels& kernels() const { return cpu::vector_kernels().kv(shape.type); }

  std::size_t cache_at(const RowEntry& row, std::size_t kv_head) const {
    return ((row.sequence * shape.kv_heads + kv_head) * shape.context) * row_bytes;
  }

  void fill_cache() {
    std::vector<float> row(shape.dim);
    for (std::vector<std::uint8_t>* const cache : {&keys, &values}) {
      for (std::size_t at = 0; at < cache->size(); at += row_bytes) {
        for (float& each : row) each = random.number() * 2.0f;
        kernels().store(row.data(), shape.dim, cache->data() + at);
      }
    }
  }

  Shape shape;
  std::vector<RowEntry> rows;
  Random random;
  std::size_t row_bytes;
  std::vector<std::uint8_t> keys;  // (2 sequences, kv_heads, context) rows
  std::vector<std::uint8_t> values;
  AttentionArguments arguments{};
  std::vector<float> query, key, value, query_norm, key_norm, rotations;
};

void norm_and_rotate(const Attention& step, std::size_t row, const std::vector<float>& norm, float* head) {
  cpu::rms_norm(cpu::vector_kernels(), head, norm.data(), step.arguments.epsilon, step.shape.dim, head);
  cpu::rotate(head, step.shape.rotary_dims, step.rotations.data() + row * step.shape.rotary_dims);
}

// The cache's numbers; those of 8 bits may differ by one code where a value stands between two.
double cache_distance(const Attention& step, const std::vector<std::uint8_t>& found,
                      const std::vector<std::uint8_t>& expected) {
  if (step.shape.type != KvType::kF32) {
    std::size_t different = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      different += std::abs(int{found[i]} - int{expected[i]}) > 1 ? 2 : found[i] != expected[i];
    }
    return different <= found.size() / 500 ? 0.0 : std::numeric_limits<double>::infinity();
  }
  const auto floats = [](const std::vector<std::uint8_t>& bytes) {
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  return distance(floats(found), floats(expected));
}

double check_prepare(Runner& runner, const Shape& shape) {
  Attention step(shape, {{0, 0, 1, 0}, {0, 1, 1, 0}, {0, 5, 0, 0}}, 51);
  std::vector<float> expected_query = step.query;
  std::vector<std::uint8_t> expected_keys = step.keys;
  std::vector<std::uint8_t> expected_values = step.values;
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    for (std::size_t h = 0; h < shape.heads; ++h) {
      norm_and_rotate(step, r, step.query_norm, expected_query.data() + (r * shape.heads + h) * step.query_head_width());
    }
    for (std::size_t h = 0; h < shape.kv_heads; ++h) {
      const std::size_t from = (r * shape.kv_heads + h) * shape.dim;
      std::vector<float> head(step.key.begin() + static_cast<std::ptrdiff_t>(from),
                              step.key.begin() + static_cast<std::ptrdiff_t>(from + shape.dim));
      norm_and_rotate(step, r, step.key_norm, head.data());
      const std::size_t at = step.cache_at(step.rows[r], h) + step.rows[r].position * step.row_bytes;
      step.kernels().store(head.data(), shape.dim, expected_keys.data() + at);
      step.kernels().store(step.value.data() + from, shape.dim, expected_values.data() + at);
    }
  }
  runner.run({"attention_prepare_" + step.kind(),
              {bound(0, step.query), bound(1, step.key), bound(2, step.value), bound(3, step.query_norm),
               bound(4, step.key_norm), bound(5, step.rotations), bound(6, step.rows), bound(7, step.keys),
               bound(8, step.values), bound_arguments(9, step.arguments)},
              {static_cast<uint>(shape.heads + shape.kv_heads), static_cast<uint>(step.rows.size()), 1},
              kSimdWidth});
  return std::max({distance(step.query, expected_query), cache_distance(step, step.keys, expected_keys),
                   same_bits(step.values, expected_values)});
}

constexpr std::size_t kStretch = 256;

void attend(const Attention& step, std::size_t r, std::size_t head, float* out) {
  const Shape& shape = step.shape;
  const RowEntry& row = step.rows[r];
  const std::size_t positions = row.position + 1;
  const std::size_t at = step.cache_at(row, head / (shape.heads / shape.kv_heads));
  const float* const query = step.query.data() + (r * shape.heads + head) * step.query_head_width();
  std::vector<float> scores(positions);
  step.kernels().dot_rows(query, {step.keys.data() + at, step.row_bytes, positions, shape.dim}, scores.data());
  float maximum = -std::numeric_limits<float>::infinity();
  for (float& each : scores) {
    each *= step.arguments.scale;
    maximum = std::max(maximum, each);
  }
  cpu::vector_kernels().exponentials(scores.data(), maximum, positions);
  double sum = 0;
  for (const float each : scores) sum += double{each};
  // In stretches: one float sum over thousands of positions is itself further off than the tolerance.
  std::vector<double> total(shape.dim);
  for (std::size_t p = 0; p < positions; p += kStretch) {
    const std::size_t count = std::min(kStretch, positions - p);
    step.kernels().sum_rows({step.values.data() + at + p * step.row_bytes, step.row_bytes, count, shape.dim},
                            scores.data() + p, out);
    for (std::size_t i = 0; i < shape.dim; ++i) total[i] += double{out[i]};
  }
  for (std::size_t i = 0; i < shape.dim; ++i) out[i] = static_cast<float>(total[i] / sum);
  if (shape.gated) cpu::vector_kernels().multiply_sigmoid(out, query + shape.dim, shape.dim);
}

// The rows of the dispatch are the step's from `first` on.
double check_attention(Runner& runner, const Shape& shape, std::vector<RowEntry> rows, uint first) {
  Attention step(shape, std::move(rows), 52);
  step.fill_cache();
  step.arguments.first_row = first;
  const std::size_t count = step.rows.size() - first;
  std::vector<float> partial(count * shape.heads * kMaxAttentionSplits * (shape.dim + 2));
  std::vector<float> attended(step.rows.size() * shape.heads * shape.dim, 3.0f);
  std::vector<float> expected = attended;
  uint splits = 0;
  for (std::size_t r = first; r < step.rows.size(); ++r) {
    splits = std::max(splits, attention_split_count(step.rows[r].position + 1));
    for (std::size_t h = 0; h < shape.heads; ++h) attend(step, r, h, expected.data() + (r * shape.heads + h) * shape.dim);
  }
  runner.run({"attention_" + step.kind(),
              {bound(0, step.query), bound(1, step.keys), bound(2, step.values), bound(3, step.rows), bound(4, partial),
               bound_arguments(5, step.arguments)},
              {static_cast<uint>(shape.heads), static_cast<uint>(count), splits},
              kAttentionThreads});
  runner.run({"attention_merge",
              {bound(0, partial), bound(1, step.query), bound(2, step.rows), bound(3, attended),
               bound_arguments(4, step.arguments)},
              {static_cast<uint>(shape.heads), static_cast<uint>(count), 1},
              kSimdWidth});
  // Apart, because the rows before `first` must be as they were.
  return distance(attended, expected);
}

}  // namespace

void add_attention_checks(std::vector<Check>& checks) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    const std::string kind = lower_name(cpu::tensor_type_of(type));
    for (const Shape& shape : {Shape{type, 4, 2, 64, 16, true, 8}, Shape{type, 2, 1, 96, 96, false, 8},
                               Shape{type, 2, 1, 256, 64, true, 8}, Shape{type, 2, 2, 24, 8, true, 8}}) {
      if (type == KvType::kQ8_0 && shape.dim % 32 != 0) continue;
      checks.push_back({"attention_prepare_" + kind, std::to_string(shape.heads) + " heads of " +
                                                         std::to_string(shape.dim),
                        kTolerance, [shape](Runner& runner) { return check_prepare(runner, shape); }});
    }
    const std::vector<RowEntry> near{{0, 0, 0, 0}, {0, 1, 0, 0}, {0, 36, 1, 0}, {0, 127, 0, 0}};
    const std::vector<RowEntry> far{{0, 700, 0, 0}, {0, 1299, 1, 0}};
    const Shape few{type, 4, 2, 64, 16, true, 128};
    const Shape wide{type, 2, 1, 256, 64, false, 1300};
    checks.push_back({"attention_" + kind, "1 to 128 positions", kTolerance,
                      [few, near](Runner& runner) { return check_attention(runner, few, near, 1); }});
    checks.push_back({"attention_" + kind, "701 and 1300 positions: two and three splits", kTolerance,
                      [wide, far](Runner& runner) { return check_attention(runner, wide, far, 0); }});
  }
  const Shape narrow{KvType::kF32, 2, 2, 24, 8, true, 40};
  checks.push_back({"attention_f32", "heads of 24", kTolerance, [narrow](Runner& runner) {
                      return check_attention(runner, narrow, {{0, 39, 0, 0}}, 0);
                    }});
  const Shape longest{KvType::kF16, 1, 1, 32, 32, false, 9001};
  checks.push_back({"attention_f16", "9001 positions: 16 long splits", kTolerance, [longest](Runner& runner) {
                      return check_attention(runner, longest, {{0, 9000, 0, 0}}, 0);
                    }});
}

}  // namespace moestream::gpu
