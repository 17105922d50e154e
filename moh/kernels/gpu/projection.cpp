// Launches of the projections: triton/launch.py in C++. All rows are one sequence of the lists.
#include "moh/base/error.h"
#include "moh/kernels/gpu/backend.h"
#include "moh/kernels/gpu/call.h"

namespace moh::kernels::gpu {
namespace {

// Whether elements of the weight lie side by side along a head's elements (W_O) rather than along the width (W_Q).
template <class Pointer>
bool is_transposed(const Strided<Pointer, 3>& weight) {
  return weight.stride[2] != 1;
}

std::string name_for(const char* kernel, const ProjectionParams& p, bool few, bool transposed) {
  return variant_name(kernel, p.dtype, p.head_dim) + (few ? "-few" : "") + (transposed ? "-transposed" : "");
}

RowLists lists_of(const ProjectionParams& p) {
  const Selection& s = p.selection;
  return RowLists(s.gates, s.num_rows, s.num_heads, 1, s.num_rows, s.num_rows, nullptr, p.stream);
}

void set_common(Arguments& a, const ProjectionParams& p) {
  a.set("num_rows", p.selection.num_rows);
  a.set("num_heads", p.selection.num_heads);
  a.set("width", p.width);
  a.set("head_dim", p.head_dim);
  a.set("out", p.out.data);
  a.set("x", p.x.data);
  a.set("heads", p.heads.data);
  a.set("weight", p.weight.data);
  a.set("bias", p.bias != nullptr ? p.bias : p.out.data);  // not read if there is none
  a.set("biased", p.bias != nullptr ? 1 : 0);
  a.set_strides({"x_r", nullptr}, p.x);
  a.set_strides({"a_r", "a_h", nullptr}, p.heads);
  a.set_strides({"w_h", "w_d", "w_c"}, p.weight);
}

bool is_few(const ProjectionParams& p) { return p.selection.num_rows <= kFewRows; }
bool is_empty(const ProjectionParams& p) { return p.selection.num_heads == 0 || p.head_dim == 0 || p.width == 0; }

}  // namespace

std::int64_t most_combined_rows() { return kFewRows; }

std::string projection_unsupported(const ProjectionParams& p, int capability) {
  const std::int64_t unit = 16 / size_of(p.dtype);
  if (p.width % unit != 0)
    return "the width must be a multiple of " + std::to_string(unit) + ", got " + std::to_string(p.width);
  std::string why;
  if (p.x.data != nullptr) why = layout_reason("x", p.x, p.dtype);
  if (why.empty() && p.heads.data != nullptr) why = layout_reason("heads", p.heads, p.dtype);
  if (why.empty() && p.weight.data != nullptr) {
    why = layout_reason("the weight", p.weight, p.dtype, is_transposed(p.weight) ? 1 : 2);
  }
  for (const char* const kernel : {"project_heads", "combine_heads", "weight_gradient"}) {
    const bool few = kernel[0] == 'c' || (kernel[0] == 'p' && is_few(p));
    if (why.empty()) why = missing_kernel(name_for(kernel, p, few, false), capability);
  }
  return why.empty() ? missing_kernel("list_rows", capability) : why;
}

void project_heads(const ProjectionParams& p) {
  if (is_empty(p) || p.selection.num_rows == 0) return;
  const RowLists lists = lists_of(p);
  Arguments a;
  set_common(a, p);
  lists.add_to(a);
  a.set_strides({"o_r", "o_h", nullptr}, p.out);
  const Kernel& kernel = kernel_for(name_for("project_heads", p, is_few(p), is_transposed(p.weight)));
  launch(kernel, {blocks(p.selection.num_rows, kernel.constant("BLOCK_M")), p.selection.num_heads}, a, p.stream);
}

void combine_heads(const ProjectionParams& p) {
  if (p.selection.num_rows == 0 || p.width == 0) return;
  MOH_CHECK(is_few(p), "[gpu] combine_heads is built for up to ", kFewRows, " rows, got ", p.selection.num_rows);
  Arguments a;
  set_common(a, p);
  a.set("gates", p.selection.gates);
  a.set("o_r", p.out.stride[0]);
  const Kernel& kernel = kernel_for(name_for("combine_heads", p, true, is_transposed(p.weight)));
  launch(kernel,
         {blocks(p.width, kernel.constant("BLOCK_N")), blocks(p.selection.num_rows, kernel.constant("BLOCK_M"))}, a,
         p.stream);
}

void weight_gradient(const ProjectionParams& p) {
  if (is_empty(p)) return;
  const RowLists lists = lists_of(p);
  Arguments a;
  set_common(a, p);
  lists.add_to(a);
  a.set_strides({"o_h", "o_d", "o_c"}, p.out);
  const Kernel& kernel = kernel_for(name_for("weight_gradient", p, false, is_transposed(p.out)));
  launch(kernel, {blocks(p.width, kernel.constant("BLOCK_N")), p.selection.num_heads}, a, p.stream);
}

}  // namespace moh::kernels::gpu
