// Entry points of the CPU kernels, one set per instruction set (cmake/MohKernels.cmake builds the sources once for
// each).
#pragma once

#include "moh/kernels/aggregated_attention.h"
#include "moh/kernels/gated_convolution.h"
#include "moh/kernels/head_attention.h"
#include "moh/kernels/packed_linear.h"
#include "moh/kernels/projection.h"
#include "moh/kernels/quantized_linear.h"

#define MOH_DECLARE_PAIR_ISA(isa)                             \
  namespace moh::kernels::isa {                               \
  void head_attention_forward(const HeadAttentionParams& p);  \
  void head_attention_backward(const HeadAttentionParams& p); \
  void project_heads(const ProjectionParams& p);              \
  void combine_heads(const ProjectionParams& p);              \
  void weight_gradient(const ProjectionParams& p);            \
  void quantized_linear(const QuantizedLinearParams& p);      \
  }

#define MOH_DECLARE_ISA(isa)                                              \
  MOH_DECLARE_PAIR_ISA(isa)                                               \
  namespace moh::kernels::isa {                                           \
  void aggregated_attention_forward(const AggregatedAttentionParams& p);  \
  void aggregated_attention_backward(const AggregatedAttentionParams& p); \
  void gated_convolution_forward(const GatedConvolutionParams& p);        \
  void gated_convolution_backward(const GatedConvolutionParams& p);       \
  void packed_linear(const PackedLinearParams& p);                        \
  }

MOH_DECLARE_ISA(portable)
#ifdef MOH_HAVE_AVX2
MOH_DECLARE_ISA(avx2)
#endif
#ifdef MOH_HAVE_AVX512
MOH_DECLARE_ISA(avx512)
#endif
MOH_DECLARE_PAIR_ISA(emulated_amx)
#ifdef MOH_HAVE_AVX512BF16
MOH_DECLARE_PAIR_ISA(avx512bf16)
#endif
#ifdef MOH_HAVE_AMX
MOH_DECLARE_PAIR_ISA(amx)
#endif

#undef MOH_DECLARE_ISA
#undef MOH_DECLARE_PAIR_ISA
