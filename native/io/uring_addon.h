// The io_uring part of the read add-on.
#pragma once

#include <napi.h>

namespace moestream::io {

// Adds `UringReader`, `uringRefusal`, `createWakeFd` and `signalWakeFd`.
void export_uring(Napi::Env env, Napi::Object exports);

}  // namespace moestream::io
