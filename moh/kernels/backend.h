// The table of backends: one row a way of running the kernels. Which row runs a call is decided here and nowhere else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moh/kernels/aggregated_attention.h"
#include "moh/kernels/gated_convolution.h"
#include "moh/kernels/head_attention.h"
#include "moh/kernels/packed_linear.h"
#include "moh/kernels/projection.h"
#include "moh/kernels/quantized_linear.h"

namespace moh::kernels {

enum class Kernel : std::uint8_t {
  kAttention,
  kProjection,
  kAggregated,
  kGatedConvolution,
  kPackedLinear,
  kQuantizedLinear
};

constexpr const char* name_of(Kernel kernel) {
  return kernel == Kernel::kAttention         ? "head attention"
         : kernel == Kernel::kProjection      ? "projections"
         : kernel == Kernel::kAggregated      ? "aggregated attention"
         : kernel == Kernel::kPackedLinear    ? "packed linear maps"
         : kernel == Kernel::kQuantizedLinear ? "linear maps of 8 and 4 bits"
                                              : "gated convolutions";
}

// What a backend has to know of a call to say whether it can run it.
struct CallTraits {
  DType dtype = DType::kFloat32;
  bool on_cpu = true;  // where the pointers live
  std::int64_t head_dim = 0;
  bool backward = false;
  Kernel kernel = Kernel::kAttention;
  // The call itself, as far as it is known (its inputs), for backends that do not take all of them.
  const HeadAttentionParams* attention = nullptr;
  const ProjectionParams* projection = nullptr;
};

// The table is ordered best first. A kernel that a backend lacks is nullptr.
struct Backend {
  const char* name;
  const char* by_name_only;  // nullptr, or why nothing chooses this one unless it is asked for by name
  // Empty: it can. Otherwise one sentence that says why not.
  std::string (*unsupported_reason)(const CallTraits& call);
  // Empty: usable on this machine. Independent of the call.
  std::string (*unavailable_reason)();
  void (*attention_forward)(const HeadAttentionParams& params);
  void (*attention_backward)(const HeadAttentionParams& params);
  void (*project_heads)(const ProjectionParams& params);
  void (*combine_heads)(const ProjectionParams& params);
  void (*weight_gradient)(const ProjectionParams& params);
  void (*aggregated_forward)(const AggregatedAttentionParams& params);
  void (*aggregated_backward)(const AggregatedAttentionParams& params);
  void (*gated_convolution_forward)(const GatedConvolutionParams& params);
  void (*gated_convolution_backward)(const GatedConvolutionParams& params);
  void (*packed_linear)(const PackedLinearParams& params) = nullptr;
  void (*quantized_linear)(const QuantizedLinearParams& params) = nullptr;

  bool automatic() const { return by_name_only == nullptr; }
};

// amx, avx512bf16 (both: bf16 calls, and weights of 8 and 4 bits), avx512, avx2, portable, triton (GPUs: attention and
// projections), emulated_amx (tests), reference.
const std::vector<Backend>& backends();

// The backend to run, or nullptr with `reason` filled if the composite form must do it. A backend forced by name (the
// argument; if empty, force_backend(); if empty, MOH_BACKEND) that cannot run is an Error that says why. The name
// "composite" forces nullptr.
const Backend* choose_backend(const CallTraits& call, std::string* reason, const std::string& name = "");

// Process-wide choice by name, as --backend sets it; "" returns to automatic. Unknown names are an Error that lists the
// known ones.
void force_backend(const std::string& name);
std::string forced_backend();

}  // namespace moh::kernels
