// A tensor as kernels see it: a pointer and strides in elements, which may be anything (0 broadcasts).
#pragma once

#include <cstdint>

namespace moh::kernels {

template <class Pointer, int dimensions>
struct Strided {
  Pointer data = nullptr;
  std::int64_t stride[dimensions] = {};
};

}  // namespace moh::kernels
