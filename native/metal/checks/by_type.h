// Checks that there are once for each tensor type of a family.
#pragma once

#include <span>
#include <vector>

#include "../../cpu/tensor_type.h"
#include "checks.h"

namespace moestream::gpu {

enum class Family { kBlocks, kAffine };

struct CheckOfType {
  const char* name;   // of the entry, before the type
  const char* shape;
  double tolerance;
  double (*function)(Runner&, cpu::TensorType);
};

// One check for every type of the family.
void add_for_types(std::vector<Check>& checks, Family family, const CheckOfType& check);

// Takes three rows of a table of nine. `table` is what it holds, (9, cols); `arrays` are its arguments from 0 on that are
// not rows, stream and sizes.
double check_embedding(Runner& runner, cpu::TensorType type, std::span<const float> table, std::span<const Bound> arrays);

}  // namespace moestream::gpu
