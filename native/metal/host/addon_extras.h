// What an add-on has beside the backend: nothing on a Mac, the emulator's controls where the GPU is emulated.
#pragma once

#include <napi.h>

namespace moestream::metal {

void add_extras(Napi::Env env, Napi::Object exports);

}  // namespace moestream::metal
