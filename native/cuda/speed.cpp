#include "speed.h"

#include <algorithm>
#include <limits>

namespace moestream::cuda {

double copy_bandwidth(Driver& driver) {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  const Memory from(driver, kBytes);
  const Memory to(driver, kBytes);
  const double microseconds = time_of(driver, 4, [&](std::size_t) { driver.copy(to.address(), from.address(), kBytes); });
  return 2.0 * kBytes / (microseconds * 1e-6);
}

double time_of(Driver& driver, std::size_t count, const std::function<void(std::size_t)>& dispatch) {
  constexpr int kRounds = 5;
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round <= kRounds; ++round) {
    const float milliseconds = driver.time([&] {
      for (std::size_t i = 0; i < count; ++i) dispatch(i);
    });
    if (round > 0) best = std::min(best, 1000.0 * double{milliseconds} / static_cast<double>(count));
  }
  return best;
}

std::vector<SpeedCase> speed_cases() {
  std::vector<SpeedCase> cases;
  add_product_cases(cases);
  add_layer_cases(cases);
  return cases;
}

}  // namespace moestream::cuda
