// The kernels for NVIDIA GPUs: those of moh/kernels/triton, compiled when the library was built. Here is what the table
// of backends holds: which call they take, and the launches each call is made of, the same as in triton/launch.py.
//
// Nothing here waits for the GPU or looks at its memory: grids are upper bounds from shapes, work space comes from the
// stream's own allocator, so a CUDA graph can hold a call. No GPU has run them yet: nothing chooses them unless asked
// for by name (`--backend triton`).
#pragma once

#include <string>

#include "moh/kernels/backend.h"

namespace moh::kernels::gpu {

// Empty: a GPU that these kernels run on is there.
std::string unavailable_reason();
// Asked with the current GPU that of the tensors.
std::string unsupported_reason(const CallTraits& call);

void head_attention_forward(const HeadAttentionParams& params);
void head_attention_backward(const HeadAttentionParams& params);
void project_heads(const ProjectionParams& params);
void combine_heads(const ProjectionParams& params);  // up to most_combined_rows() rows
void weight_gradient(const ProjectionParams& params);

// Of more rows the combining product skips nothing (triton/projection.py says why): the dense one is as good.
std::int64_t most_combined_rows();

}  // namespace moh::kernels::gpu
