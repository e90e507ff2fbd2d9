// What can go wrong between this process and a GPU, as stable codes.
//
// The codes cross into JavaScript as `error.code` and are MoestreamError codes there. A wrong call of ours is none of
// these: that is std::logic_error, a bug.
#pragma once

#include "moestream/coded_error.h"

namespace moestream::metal {

// No Metal device here, or one that cannot run the kernels.
inline constexpr const char* kGpuUnavailable = "GPU_UNAVAILABLE";
// The GPU refused or broke off a command buffer.
inline constexpr const char* kGpuFailed = "GPU_FAILED";
// The system ended a command buffer because it took too long.
inline constexpr const char* kGpuTimeout = "GPU_TIMEOUT";
// The device was removed, or this process may not use it any more.
inline constexpr const char* kGpuLost = "GPU_LOST";
// The model asks for what the kernels do not have.
inline constexpr const char* kModelUnsupported = "MODEL_UNSUPPORTED";

class GpuError : public CodedError {
 public:
  using CodedError::CodedError;
};

}  // namespace moestream::metal
