// The kernels of ../kernels as pipelines, compiled by the system when the backend starts.
//
// Their text is part of this add-on, so a user needs no Metal compiler. Each file is a library of its own: a fault in one
// names itself, and `tensor.metal`, which needs Metal 4, may be missing. A pipeline is made when it is first asked for and
// kept; asking again gives the same address, so the token path asks once and keeps the pointer.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "metal.h"

namespace moestream::metal {

struct KernelSource {
  std::string_view file;  // "matvec.metal"
  std::string_view text;
  bool metal4;  // needs Metal 4, and may fail
};

// Made from the kernels' folder when the add-on is built.
std::span<const KernelSource> kernel_sources();

class Kernels {
 public:
  // Throws GpuError with the compiler's words when a file that is needed does not compile.
  explicit Kernels(const Device& device);

  bool has(const std::string& entry) const { return library_of_.contains(entry); }
  // Throws GpuError when no library has the kernel.
  const Pipeline& pipeline(const std::string& entry);

 private:
  const Device& device_;
  std::vector<Library> libraries_;
  std::unordered_map<std::string, std::size_t> library_of_;
  std::unordered_map<std::string, Pipeline> pipelines_;
};

}  // namespace moestream::metal
