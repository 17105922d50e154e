// The archive of a build without GPU kernels; cmake says why.
#include "moh/kernels/gpu/archive.h"

namespace moh::kernels::gpu {
const KernelRow kRows[] = {{}};
const std::size_t kNumRows = 0;
const unsigned char* const kImages = nullptr;
const char* const kNotBuilt = MOH_GPU_NOT_BUILT;
const std::int64_t kFewQueries = 0, kFewRows = 0;
}  // namespace moh::kernels::gpu
