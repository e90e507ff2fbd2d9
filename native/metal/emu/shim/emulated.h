// What generated code includes first: Metal's library on the emulator. Address spaces vanish, `constant` stays const.
#pragma once

#include "../runtime/registration.h"

#include "scalars.h"

#include "vectors.h"

#include "math.h"

#include "simd_emulated.h"

namespace moestream {
inline uint32_t this_lane() { return emu::current_lane->lane; }
}  // namespace moestream

#include "matrix_emulated.h"

#include "multiply_emulated.h"

#include "tensor_emulated.h"

#define device
#define constant const
#define thread

#pragma clang diagnostic ignored "-Wduplicate-decl-specifier"
