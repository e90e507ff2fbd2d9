// The kernels' PTX on an NVIDIA card: every kernel against the CPU's code, then the large ones timed.
//
//   ptx_bench FOLDER [RESULTS.json [NAME]]
//
// FOLDER has the .ptx files; with a NAME, only kernels whose name begins with it. A Markdown report goes to standard output as it comes, JSON to the file. A kernel that
// fails is reported and the others go on; after kMaxSeconds the rest is left out and said so. Ends with 1 when a kernel
// failed, 3 when there is no card.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>

#include "../metal/checks/checks.h"
#include "card.h"
#include "speed.h"

namespace {

using namespace moestream;

constexpr double kMaxSeconds = 220;

double seconds_so_far() {
  static const auto begin = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return std::isfinite(value) ? text : "null";
}

// A name or a sentence; nothing in it needs more than quotes and backslashes escaped.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 32) out += c;
  }
  return out + "\"";
}

struct Report {
  std::string checks;
  std::string speeds;
  int run = 0;
  int failed = 0;
  std::string wanted;  // how the names of wanted kernels begin

  bool wants(const std::string& kernel) const { return kernel.starts_with(wanted); }

  static void add(std::string& list, const std::string& entry) { list += (list.empty() ? "\n  " : ",\n  ") + entry; }
};

void run_checks(cuda::Card& card, Report& report) {
  double worst = 0;
  for (const gpu::Check& check : gpu::all_checks()) {
    if (!report.wants(check.kernel)) continue;
    if (seconds_so_far() > kMaxSeconds) {
      std::printf("- time is over: the remaining checks were not run\n");
      break;
    }
    ++report.run;
    double distance = INFINITY;
    std::string error;
    try {
      distance = check.distance(card);
      if (!(distance <= check.tolerance)) error = "too far from the CPU";
    } catch (const std::exception& thrown) {
      error = thrown.what();
      card.restart();
    }
    if (error.empty()) {
      worst = std::fmax(worst, distance);
    } else {
      ++report.failed;
      std::printf("- **%s** (%s): %s, distance %.3g of %.3g\n", check.kernel.c_str(), check.shape.c_str(), error.c_str(),
                  distance, check.tolerance);
    }
    Report::add(report.checks, "{\"kernel\": " + quoted(check.kernel) + ", \"shape\": " + quoted(check.shape) +
                                   ", \"distance\": " + number(distance) + ", \"tolerance\": " +
                                   number(check.tolerance) + ", \"error\": " + quoted(error) + "}");
    std::fflush(stdout);
  }
  std::printf("\n%d checks, %d failed, largest distance of those that passed %.2g\n\n", report.run, report.failed, worst);
}

void print_speed(const cuda::Speed& speed, double copy) {
  const double bytes_per_second = speed.bytes / (speed.microseconds * 1e-6);
  const std::string distance = speed.distance < 0 ? std::string() : number(speed.distance);
  std::printf("| `%s` | %s | %.1f | ", speed.kernel.c_str(), speed.shape.c_str(), speed.microseconds);
  if (speed.operations > 0) {
    std::printf("%.2f TFLOP/s | | %s |\n", speed.operations / speed.microseconds * 1e-6, distance.c_str());
  } else {
    std::printf("%.0f GB/s | %.2f | %s |\n", bytes_per_second * 1e-9, bytes_per_second / copy, distance.c_str());
  }
}

void run_speeds(cuda::Driver& driver, cuda::Card& card, double copy, Report& report) {
  std::printf("| kernel | shape | microseconds | rate | part of the copy's | distance |\n|---|---|---|---|---|---|\n");
  for (const cuda::SpeedCase& each : cuda::speed_cases()) {
    if (!report.wants(each.name)) continue;
    if (seconds_so_far() > kMaxSeconds) {
      std::printf("\ntime is over: the remaining kernels were not timed\n");
      break;
    }
    try {
      const cuda::Speed speed = each.run(driver, card);
      print_speed(speed, copy);
      const bool wrong = speed.distance > gpu::kTolerance || std::isnan(speed.distance);
      if (wrong) ++report.failed;
      Report::add(report.speeds,
                  "{\"kernel\": " + quoted(speed.kernel) + ", \"shape\": " + quoted(speed.shape) +
                      ", \"microseconds\": " + number(speed.microseconds) + ", \"bytes\": " + number(speed.bytes) +
                      ", \"operations\": " + number(speed.operations) + ", \"distance\": " + number(speed.distance) + "}");
    } catch (const std::exception& error) {
      ++report.failed;
      std::printf("| `%s` | %s | | | | |\n", each.name.c_str(), error.what());
      card.restart();
    }
    std::fflush(stdout);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) {
    std::fprintf(stderr, "usage: ptx_bench FOLDER [RESULTS.json [NAME]]\n");
    return 2;
  }
  seconds_so_far();
  Report report;
  if (count > 3) report.wanted = words[3];
  try {
    cuda::Driver driver;
    cuda::Card card(driver, words[1]);
    const double copy = cuda::copy_bandwidth(driver);
    std::printf("# Kernels as PTX on %s\n\nCopy bandwidth (read and written): %.0f GB/s\n\n", driver.device_name().c_str(),
                copy * 1e-9);
    for (const std::string& refused : card.refused()) std::printf("- **refused** %s\n", refused.c_str());
    report.failed += static_cast<int>(card.refused().size());
    run_checks(card, report);
    run_speeds(driver, card, copy, report);
    std::printf("\n%.0f seconds, %d failures\n", seconds_so_far(), report.failed);
    if (count > 2) {
      std::ofstream(words[2]) << "{\"device\": " << quoted(driver.device_name())
                              << ",\n\"copyBytesPerSecond\": " << number(copy) << ",\n\"checks\": [" << report.checks
                              << "],\n\"speeds\": [" << report.speeds << "]}\n";
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ptx_bench: %s\n", error.what());
    return 3;
  }
  return report.failed == 0 ? 0 : 1;
}
