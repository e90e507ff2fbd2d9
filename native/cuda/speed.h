// Kernels at the sizes of real models, timed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "card.h"

namespace moestream::cuda {

struct Speed {
  std::string kernel;
  std::string shape;
  double microseconds = 0;      // of one dispatch
  double bytes = 0;             // that one dispatch must at least move
  double operations = 0;        // multiplications with their additions, counted twice; 0 where bytes are what counts
  double distance = 0;          // of what it computed; negative where nothing was compared
};

struct SpeedCase {
  std::string name;
  std::function<Speed(Driver&, Card&)> run;
};

std::vector<SpeedCase> speed_cases();

void add_product_cases(std::vector<SpeedCase>& cases);
void add_layer_cases(std::vector<SpeedCase>& cases);

// Bytes per second, read and written, of the driver's own copy.
double copy_bandwidth(Driver& driver);

// Microseconds of one of `count` dispatches, the best of some rounds after one that warms up.
double time_of(Driver& driver, std::size_t count, const std::function<void(std::size_t)>& dispatch);

}  // namespace moestream::cuda
