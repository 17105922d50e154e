// Kernels for NVIDIA GPUs (sm_80, sm_90a), built with MOH_CUDA. No torch: pointers into device memory, and the stream
// of the params. Plain CUDA cores and fp32 arithmetic: right before fast, so that build, dispatch, tests and
// scripts/gpu_check have something real to work on. They compile in every build that has nvcc, and tests run their
// sources on the CPU; they have not been run on a GPU yet, so nothing chooses them unless asked for by name
// (`--backend cuda`).
#pragma once

#include <string>

#include "moh/kernels/backend.h"

namespace moh::kernels::cuda {

// Empty: a GPU of a supported kind is there.
std::string unavailable_reason();
std::string unsupported_reason(const CallTraits& call);

void head_attention_forward(const HeadAttentionParams& params);
void head_attention_backward(const HeadAttentionParams& params);

}  // namespace moh::kernels::cuda
