#include "moh/kernels/reference/projection.h"

#include "moh/kernels/reference/element.h"

namespace moh::kernels::reference {
namespace {

template <class Pointer, int dimensions>
std::int64_t place(const Strided<Pointer, dimensions>& tensor, std::int64_t i, std::int64_t j, std::int64_t k = 0) {
  return i * tensor.stride[0] + j * tensor.stride[1] + (dimensions > 2 ? k * tensor.stride[2] : 0);
}

template <int dimensions>
double get(const Strided<const void*, dimensions>& tensor, DType dtype, std::int64_t i, std::int64_t j,
           std::int64_t k = 0) {
  return to_double(static_cast<const char*>(tensor.data) + place(tensor, i, j, k) * size_of(dtype), dtype);
}

double bias_of(const ProjectionParams& p, std::int64_t i) {
  return p.bias == nullptr ? 0 : to_double(static_cast<const char*>(p.bias) + i * size_of(p.dtype), p.dtype);
}

void put(const ProjectionParams& p, std::int64_t i, std::int64_t j, std::int64_t k, double value) {
  from_double(static_cast<char*>(p.out.data) + place(p.out, i, j, k) * size_of(p.dtype), p.dtype, value);
}

bool selected(const ProjectionParams& p, std::int64_t r, std::int64_t h) {
  return p.selection.gates[r * p.selection.num_heads + h] != 0;
}

}  // namespace

void project_heads(const ProjectionParams& p) {
  for (std::int64_t r = 0; r < p.selection.num_rows; ++r) {
    for (std::int64_t h = 0; h < p.selection.num_heads; ++h) {
      for (std::int64_t d = 0; d < p.head_dim; ++d) {
        double sum = 0;
        if (selected(p, r, h)) {
          sum = bias_of(p, h * p.head_dim + d);
          for (std::int64_t c = 0; c < p.width; ++c) sum += get(p.x, p.dtype, r, c) * get(p.weight, p.dtype, h, d, c);
        }
        put(p, r, h, d, sum);
      }
    }
  }
}

void combine_heads(const ProjectionParams& p) {
  for (std::int64_t r = 0; r < p.selection.num_rows; ++r) {
    for (std::int64_t c = 0; c < p.width; ++c) {
      double sum = bias_of(p, c);
      for (std::int64_t h = 0; h < p.selection.num_heads; ++h) {
        if (!selected(p, r, h)) continue;
        for (std::int64_t d = 0; d < p.head_dim; ++d) {
          sum += get(p.heads, p.dtype, r, h, d) * get(p.weight, p.dtype, h, d, c);
        }
      }
      put(p, r, c, 0, sum);
    }
  }
}

void weight_gradient(const ProjectionParams& p) {
  for (std::int64_t h = 0; h < p.selection.num_heads; ++h) {
    for (std::int64_t d = 0; d < p.head_dim; ++d) {
      for (std::int64_t c = 0; c < p.width; ++c) {
        double sum = 0;
        for (std::int64_t r = 0; r < p.selection.num_rows; ++r) {
          if (selected(p, r, h)) sum += get(p.heads, p.dtype, r, h, d) * get(p.x, p.dtype, r, c);
        }
        put(p, h, d, c, sum);
      }
    }
  }
}

}  // namespace moh::kernels::reference
