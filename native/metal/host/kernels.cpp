// Compiling the sources of kernels.h and finding entries in them.
#include "kernels.h"

#include "gpu_error.h"

namespace moestream::metal {

Kernels::Kernels(const Device& device) : device_(device) {
  for (const KernelSource& source : kernel_sources()) {
    // Without units for them, tensor products are slower than the tiles of matmul.metal.
    if (source.metal4 && !device.tensor_units()) continue;
    try {
      libraries_.push_back(device.library(std::string(source.text), source.metal4 ? kLanguage40 : kLanguage31));
    } catch (const GpuError& error) {
      if (source.metal4) continue;  // the same products without the tensor units
      throw GpuError(error.code(), std::string(source.file) + ": " + error.what());
    }
    for (std::string& name : libraries_.back().functions()) {
      library_of_.emplace(std::move(name), libraries_.size() - 1);
    }
  }
}

const Pipeline& Kernels::pipeline(const std::string& entry) {
  const auto kept = pipelines_.find(entry);
  if (kept != pipelines_.end()) return kept->second;
  const auto found = library_of_.find(entry);
  if (found == library_of_.end()) throw GpuError(kGpuUnavailable, "the GPU library has no kernel " + entry);
  const objc::Owned function = libraries_[found->second].function(entry, {});
  return pipelines_.emplace(entry, device_.pipeline(function)).first->second;
}

}  // namespace moestream::metal
