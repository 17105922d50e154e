// What the launches of attention and of projections share.
#pragma once

#include <cstdint>
#include <string>

#include "moh/kernels/dtype.h"
#include "moh/kernels/gpu/archive.h"
#include "moh/kernels/gpu/driver.h"
#include "moh/kernels/gpu/launch.h"
#include "moh/kernels/head_attention.h"
#include "moh/kernels/projection.h"

namespace moh::kernels::gpu {

constexpr std::int64_t blocks(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

// "attention_forward-bf16-d64": kernel, type and the size of head that its tiles hold.
std::string variant_name(const char* kernel, DType dtype, std::int64_t head_dim);

// The kernel of that name for the current GPU, or an Error that says what is not built.
const Kernel& kernel_for(const std::string& variant);

// Kernels read 16 bytes at once: empty, or what of this tensor does not allow that. Its last axis is an element of a
// head; others may be anything that is a multiple of 16 bytes.
template <class Pointer, int dimensions>
std::string layout_reason(const char* what, const Strided<Pointer, dimensions>& tensor, DType dtype,
                          int dense_axis = dimensions - 1) {
  const std::int64_t unit = 16 / size_of(dtype);
  bool fits = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.stride[dense_axis] == 1;
  for (int i = 0; i < dimensions; ++i) fits = fits && (i == dense_axis || tensor.stride[i] % unit == 0);
  return fits ? ""
              : std::string(what) + " must lie in rows that begin at multiples of 16 bytes, dense in its last axis";
}

// Empty, or why no kernel takes heads of this type and size.
std::string head_reason(DType dtype, std::int64_t head_dim);

// Which rows of every sequence use a head (triton/lists.py), on the device.
struct RowLists {
  std::int64_t steps;
  Workspace memory;
  void* rows;
  void* counts;
  void* before;

  RowLists(const float* gates, std::int64_t total_rows, std::int64_t num_heads, std::int64_t num_sequences,
           std::int64_t rows_per_batch, std::int64_t longest, const std::int64_t* table, void* stream);
  void add_to(Arguments& arguments) const;
};

std::string attention_unsupported(const HeadAttentionParams& params, bool backward, int capability);
std::string projection_unsupported(const ProjectionParams& params, int capability);

}  // namespace moh::kernels::gpu
