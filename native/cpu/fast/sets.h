// The sets that products.cpp chooses from; which of them exist depends on the processor family.
#pragma once

#include "products.h"

namespace moestream::cpu {

extern const ProductKernels kPortableProducts;
extern const ProductKernels kAvx2Products;
extern const ProductKernels kAvx512Products;
extern const ProductKernels kNeonProducts;
extern const ProductKernels kNeonI8mmProducts;

}  // namespace moestream::cpu
