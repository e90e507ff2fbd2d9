// The products for AVX-512 with VBMI, VNNI and GFNI (Ice Lake, Zen 4 and later), entered only where all are there.
#include "avx512_affine.h"
#include "avx512_eights.h"
#include "avx512_iq.h"
#include "avx512_k.h"
#include "floats.h"
#include "sets.h"

namespace moestream::cpu {
namespace {

template <class Format>
TypeKernel super_kernel() {
  return {Format::kForm, planar_super<Format>};
}

template <class Format>
TypeKernel eights_kernel() {
  return {InputForm::kBlocks32, planar_eights<Format>};
}

TypeKernel kernel_of(TensorType type) {
  if (is_affine(type)) return affine_kernel(affine_of(type));
  switch (type) {
    case TensorType::F32: return {InputForm::kFloats, multiply_floats<LoadF32>};
    case TensorType::F16: return {InputForm::kFloats, multiply_floats<LoadF16>};
    case TensorType::BF16: return {InputForm::kFloats, multiply_floats<LoadBf16>};
    case TensorType::Q8_0: return eights_kernel<EightQ80>();
    case TensorType::Q4_0: return eights_kernel<EightQ40>();
    case TensorType::Q4_1: return eights_kernel<EightQ41>();
    case TensorType::Q5_0: return eights_kernel<EightQ50>();
    case TensorType::Q5_1: return eights_kernel<EightQ51>();
    case TensorType::IQ4_NL: return eights_kernel<EightIq4Nl>();
    case TensorType::MXFP4: return eights_kernel<EightMxfp4>();
    case TensorType::Q2_K: return super_kernel<PlanarQ2K>();
    case TensorType::Q3_K: return super_kernel<PlanarQ3K>();
    case TensorType::Q4_K: return super_kernel<PlanarQ4K>();
    case TensorType::Q5_K: return super_kernel<PlanarQ5K>();
    case TensorType::Q6_K: return super_kernel<PlanarQ6K>();
    case TensorType::IQ2_XXS: return super_kernel<PlanarIq2Xxs>();
    case TensorType::IQ2_XS: return super_kernel<PlanarIq2Xs>();
    case TensorType::IQ2_S: return super_kernel<PlanarIq2S>();
    case TensorType::IQ3_XXS: return super_kernel<PlanarIq3Xxs>();
    case TensorType::IQ3_S: return super_kernel<PlanarIq3S>();
    case TensorType::IQ4_XS: return super_kernel<PlanarIq4Xs>();
  }
  return {};
}

}  // namespace

const ProductKernels kAvx512Products{"avx512", prepare_planar, kernel_of, gate_values};

}  // namespace moestream::cpu
