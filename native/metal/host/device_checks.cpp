// Running one check's dispatches: each with fresh buffers, copied in and out, so that no layout of memory is assumed.
#include "device_checks.h"

#include <cstring>
#include <map>
#include <utility>

namespace moestream::metal {
namespace {

class DeviceRunner : public gpu::Runner {
 public:
  DeviceRunner(const Device& device, Submission& submission, Kernels& kernels)
      : device_(device), submission_(submission), kernels_(kernels) {}

  void run(const gpu::Dispatch& wanted) override {
    // The same memory may be bound twice: it is one buffer then.
    std::map<const std::byte*, Buffer> buffers;
    for (const gpu::Bound& each : wanted.buffers) {
      Buffer& buffer = buffers[each.bytes.data()];
      if (buffer.id() != nullptr) continue;
      buffer = device_.buffer(each.bytes.size());
      std::memcpy(buffer.contents(), each.bytes.data(), each.bytes.size());
    }
    Commands commands = submission_.begin();
    Dispatch dispatch(commands, kernels_.pipeline(wanted.kernel));
    for (const gpu::Bound& each : wanted.buffers) dispatch.buffer(each.index, {&buffers[each.bytes.data()], 0});
    dispatch.run({wanted.groups[0], wanted.groups[1], wanted.groups[2]}, wanted.threads);
    submission_.commit(std::move(commands));
    submission_.wait();
    for (const gpu::Bound& each : wanted.buffers) {
      std::memcpy(each.bytes.data(), buffers[each.bytes.data()].contents(), each.bytes.size());
    }
  }

 private:
  const Device& device_;
  Submission& submission_;
  Kernels& kernels_;
};

}  // namespace

DeviceChecks::DeviceChecks()
    : device_(Device::system_default()),
      submission_(device_.queue()),
      kernels_(device_),
      checks_(gpu::all_checks()) {
  std::erase_if(checks_, [&](const gpu::Check& check) { return !kernels_.has(check.kernel); });
}

double DeviceChecks::run(const gpu::Check& check) {
  DeviceRunner runner(device_, submission_, kernels_);
  return check.distance(runner);
}

}  // namespace moestream::metal
