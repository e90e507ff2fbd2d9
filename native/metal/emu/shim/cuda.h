// What generated code includes first when it becomes PTX: Metal's library on warps, without any header of an SDK.
// Simdgroup functions take the full mask: the kernels call them with all lanes (dialect rule 3).
#pragma once

#define MOESTREAM_PTX 1
#pragma clang force_cuda_host_device begin

#include "scalars.h"

#include "vectors.h"

#include "math.h"

#include "cuda_arguments.h"

#include "simd_cuda.h"

#include "matrix_emulated.h"

#include "multiply_cuda.h"

#define device
#define constant const
#define thread

#pragma clang diagnostic ignored "-Wduplicate-decl-specifier"
