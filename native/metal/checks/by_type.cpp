#include "by_type.h"

#include "material.h"

namespace moestream::gpu {

void add_for_types(std::vector<Check>& checks, Family family, const CheckOfType& check) {
  for (const cpu::TypeTraits& traits : cpu::supported_types()) {
    const cpu::TensorType type = traits.type;
    if (cpu::is_affine(type) != (family == Family::kAffine)) continue;
    const std::string group =
        cpu::is_affine(type) ? ", groups of " + std::to_string(cpu::affine_of(type).group) : "";
    checks.push_back({check.name + lower_name(type), check.shape + group, check.tolerance,
                      [type, function = check.function](Runner& runner) { return function(runner, type); }});
  }
}

double check_embedding(Runner& runner, cpu::TensorType type, std::span<const float> table,
                       std::span<const Bound> arrays) {
  constexpr std::size_t kTableRows = 9;
  const std::size_t cols = table.size() / kTableRows;
  const std::vector<RowEntry> rows{{8, 0, 0, 0}, {0, 1, 0, 0}, {5, 2, 0, 0}};
  std::vector<float> stream(rows.size() * cols);
  EmbedArguments arguments{static_cast<uint>(cols), kTableRows};
  std::vector<Bound> buffers(arrays.begin(), arrays.end());
  buffers.insert(buffers.end(), {bound(1, rows), bound(2, stream), bound_arguments(3, arguments)});
  runner.run({"embed_" + lower_name(type), std::move(buffers), {3, 1, 1}, kMatvecThreads});
  std::vector<float> expected;
  for (const RowEntry& row : rows) {
    const std::span<const float> values = table.subspan(row.token * cols, cols);
    expected.insert(expected.end(), values.begin(), values.end());
  }
  return same_bits(stream, expected);
}

}  // namespace moestream::gpu
