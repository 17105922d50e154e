#include "moh/ops/packed_linear.h"

#include <ATen/ATen.h>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;

bool is_kernel_type(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

bool& rowwise() {
  thread_local bool wanted = false;
  return wanted;
}

}  // namespace

PackedWeight::PackedWeight(const Tensor& weight, const std::optional<Tensor>& bias) {
  MOH_CHECK(weight.dim() == 2 && weight.is_cpu() && is_kernel_type(weight.scalar_type()),
            "[packed_linear] weight must be [out, in] in fp32, bf16 or fp16 on the CPU, got ", weight.scalar_type(),
            " ", weight.sizes());
  outputs_ = weight.size(0);
  inputs_ = weight.size(1);
  packed_ = at::empty({kernels::packed_size(outputs_, inputs_)}, weight.options().requires_grad(false));
  kernels::pack_weight(weight.const_data_ptr(), static_cast<std::int64_t>(weight.element_size()), outputs_, inputs_,
                       weight.stride(0), weight.stride(1), packed_.mutable_data_ptr(), torch_parallel());
  if (bias) bias_ = kernel_gates_of(*bias);
}

Tensor PackedWeight::apply(const Tensor& x) const {
  MOH_CHECK(x.dim() >= 1 && x.size(-1) == inputs_ && x.is_cpu() && is_kernel_type(x.scalar_type()),
            "[packed_linear] x must be [..., ", inputs_, "] in fp32, bf16 or fp16 on the CPU, got ", x.scalar_type(),
            " ", x.sizes());
  auto sizes = x.sizes().vec();
  sizes.back() = outputs_;
  const Tensor rows = x.detach().reshape({-1, inputs_});
  kernels::PackedLinearParams p;
  p.dtype = kernel_dtype(x.scalar_type());
  std::string reason;
  const auto* const backend =
      kernels::choose_backend({.dtype = p.dtype, .kernel = kernels::Kernel::kPackedLinear}, &reason);
  if (backend == nullptr) {
    TORCH_WARN_ONCE("moh's packed linear maps run LibTorch's product: ", reason);
    const Tensor weight = packed_.view({-1, inputs_, kernels::kPackedColumns})
                              .transpose(1, 2)
                              .reshape({-1, inputs_})
                              .narrow(0, 0, outputs_);
    Tensor y = at::matmul(rows.to(at::kFloat), weight.to(at::kFloat).t());
    if (bias_.defined()) y = y + bias_;
    return y.to(x.scalar_type()).view(sizes);
  }
  const Tensor y = at::empty({rows.size(0), outputs_}, x.options().requires_grad(false));
  p.rows = rows.size(0);
  p.inputs = inputs_;
  p.outputs = outputs_;
  p.weight_dtype = kernel_dtype(packed_.scalar_type());
  fill(p.x, rows);
  p.weight = packed_.const_data_ptr();
  p.bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
  fill(p.y, y);
  p.parallel = torch_parallel();
  backend->packed_linear(p);
  return y.view(sizes);
}

RowwiseProducts::RowwiseProducts() : before_(rowwise()) { rowwise() = true; }
RowwiseProducts::~RowwiseProducts() { rowwise() = before_; }
bool RowwiseProducts::wanted() { return rowwise(); }

}  // namespace moh::ops
