// The real device needs no controls.
#include "addon_extras.h"

namespace moestream::metal {

void add_extras(Napi::Env, Napi::Object) {}

}  // namespace moestream::metal
