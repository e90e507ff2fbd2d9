// The kernels' PTX on a card: loaded by name, launched on device memory, or run as a check asks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "../metal/checks/runner.h"
#include "driver.h"

namespace moestream::cuda {

// Device memory that is given back at the end of its scope.
class Memory {
 public:
  Memory(Driver& driver, std::size_t bytes) : driver_(driver), bytes_(bytes), address_(driver.allocate(bytes)) {}
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Address address() const { return address_; }
  std::size_t bytes() const { return bytes_; }

 private:
  Driver& driver_;
  std::size_t bytes_;
  Address address_;
};

// What a kernel gets, as the generator's cuda flavour takes it.
struct Arguments {
  Address buffers[31] = {};
};

class Card : public gpu::Runner {
 public:
  // Loads every .ptx file of the folder.
  Card(Driver& driver, const std::string& folder);

  void run(const gpu::Dispatch& dispatch) override;

  // Throws CudaError when no file has it.
  void* function(const std::string& kernel);

  // After a fault: a fresh context, and the modules in it.
  void restart();

  // Files that the driver refused, and why.
  const std::vector<std::string>& refused() const { return refused_; }

 private:
  void load();

  Driver& driver_;
  std::map<std::string, std::string> sources_;  // by file
  std::vector<void*> modules_;
  std::vector<std::string> refused_;
};

}  // namespace moestream::cuda
