// Every kernel on small random data, against the CPU's code for the same operation.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runner.h"

namespace moestream::gpu {

// How far float results may be from the CPU's: the largest difference, as a part of the largest value.
inline constexpr double kTolerance = 2e-6;

struct Check {
  std::string kernel;  // the entry it is about
  std::string shape;
  double tolerance;    // 0: the same bits
  // Runs the kernel and returns the distance; infinite when a result is no number or an integer differs.
  std::function<double(Runner&)> distance;
};

// Of all kernels but those that need Metal 4.
std::vector<Check> all_checks();

// By topic.
void add_product_checks(std::vector<Check>& checks);
void add_tensor_checks(std::vector<Check>& checks);  // tensor.metal
void add_affine_checks(std::vector<Check>& checks);
void add_affine_tensor_checks(std::vector<Check>& checks);
void add_elementary_checks(std::vector<Check>& checks);
void add_router_checks(std::vector<Check>& checks);
void add_attention_checks(std::vector<Check>& checks);
void add_delta_checks(std::vector<Check>& checks);

}  // namespace moestream::gpu
