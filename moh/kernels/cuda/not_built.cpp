// What the table of backends holds for CUDA in a build without nvcc (MOH_CUDA off): a row that says so.
#include "moh/base/error.h"
#include "moh/kernels/cuda/backend.h"

namespace moh::kernels::cuda {

std::string unavailable_reason() { return "this build has no CUDA kernels (nvcc was not found, or MOH_CUDA is off)"; }
std::string unsupported_reason(const CallTraits&) { return unavailable_reason(); }
void head_attention_forward(const HeadAttentionParams&) { fail("[cuda] ", unavailable_reason()); }
void head_attention_backward(const HeadAttentionParams&) { fail("[cuda] ", unavailable_reason()); }

}  // namespace moh::kernels::cuda
