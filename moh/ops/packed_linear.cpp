#include "moh/ops/packed_linear.h"

#include <ATen/ATen.h>

#include <cstring>
#include <vector>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/ops/kernel_tensor.h"
#include "moh/ops/parallel.h"

namespace moh::ops {
namespace {

using at::Tensor;
using Side = kernels::HeadSides::Side;

bool is_kernel_type(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

bool& rowwise() {
  thread_local bool wanted = false;
  return wanted;
}

kernels::HeadSides sides_of(Side side, const Tensor& gates, std::int64_t size) {
  return {.side = side, .gates = gates.const_data_ptr<float>(), .count = gates.size(-1), .size = size / gates.size(-1)};
}

}  // namespace

PackedWeight::PackedWeight(const Tensor& weight, const std::optional<Tensor>& bias, WeightStorage storage) {
  MOH_CHECK(weight.dim() == 2 && weight.is_cpu() && is_kernel_type(weight.scalar_type()),
            "[packed_linear] weight must be [out, in] in fp32, bf16 or fp16 on the CPU, got ", weight.scalar_type(),
            " ", weight.sizes());
  outputs_ = weight.size(0);
  inputs_ = weight.size(1);
  if (bias) bias_ = kernel_gates_of(*bias);
  if (storage == WeightStorage::kSame) {
    packed_ = at::empty({kernels::packed_size(outputs_, inputs_)}, weight.options().requires_grad(false));
    kernels::pack_weight(weight.const_data_ptr(), static_cast<std::int64_t>(weight.element_size()), outputs_, inputs_,
                         weight.stride(0), weight.stride(1), packed_.mutable_data_ptr(), torch_parallel());
    return;
  }
  blocks_ = storage == WeightStorage::kInt8 ? kernels::WeightBlocks::kQ8_0 : kernels::WeightBlocks::kQ4_0;
  const Tensor numbers = weight.detach().to(at::kFloat).contiguous();
  const Tensor blocks = at::empty({outputs_, kernels::blocks_of(inputs_) * kernels::block_bytes(*blocks_)}, at::kByte);
  kernels::quantize_blocks(numbers.const_data_ptr<float>(), outputs_, inputs_, *blocks_, blocks.mutable_data_ptr(),
                           torch_parallel());
  store_blocks(blocks.const_data_ptr());
}

PackedWeight::PackedWeight(const BlockedWeight& weight, std::int64_t inputs, const std::optional<Tensor>& bias)
    : blocks_(weight.kind), outputs_(weight.bytes.size(0)), inputs_(inputs) {
  MOH_CHECK(weight.bytes.size(1) == kernels::blocks_of(inputs) * kernels::block_bytes(weight.kind),
            "[packed_linear] blocks of ", inputs, " inputs cannot have ", weight.bytes.size(1), " bytes a row");
  if (bias) bias_ = kernel_gates_of(*bias);
  store_blocks(weight.bytes.contiguous().const_data_ptr());
}

void PackedWeight::store_blocks(const void* blocks) {
  packed_ = at::empty({kernels::packed_blocks_size(outputs_, inputs_, *blocks_)}, at::kByte);
  kernels::pack_blocks(blocks, outputs_, inputs_, *blocks_, packed_.mutable_data_ptr(), torch_parallel());
}

Tensor PackedWeight::apply(const Tensor& x) const { return run(x, {}); }

Tensor PackedWeight::project(const Tensor& x, const Selection& selection) const {
  const Tensor gates = kernel_gates_of(selection.gates);
  auto sizes = selection.gates.sizes().vec();
  sizes.push_back(-1);
  return run(x, sides_of(Side::kOutputs, gates, outputs_)).view(sizes);
}

Tensor PackedWeight::combine(const Tensor& heads, const Selection& selection) const {
  const Tensor gates = kernel_gates_of(selection.gates);
  return run(heads.flatten(-2), sides_of(Side::kInputs, gates, inputs_));
}

Tensor PackedWeight::matrix() const {
  if (!blocks_) {
    return packed_.view({-1, inputs_, kernels::kPackedColumns})
        .transpose(1, 2)
        .reshape({-1, inputs_})
        .narrow(0, 0, outputs_)
        .to(at::kFloat);
  }
  const Tensor numbers = at::empty({outputs_, inputs_}, at::kFloat);
  kernels::unpack_numbers(packed_.const_data_ptr(), outputs_, inputs_, *blocks_, numbers.mutable_data_ptr<float>());
  return numbers;
}

Tensor PackedWeight::run(const Tensor& x, const kernels::HeadSides& heads) const {
  MOH_CHECK(x.dim() >= 1 && x.size(-1) == inputs_ && x.is_cpu() && is_kernel_type(x.scalar_type()),
            "[packed_linear] x must be [..., ", inputs_, "] in fp32, bf16 or fp16 on the CPU, got ", x.scalar_type(),
            " ", x.sizes());
  auto sizes = x.sizes().vec();
  sizes.back() = outputs_;
  const Tensor rows = x.detach().reshape({-1, inputs_});
  const kernels::DType dtype = kernel_dtype(x.scalar_type());
  const auto kernel = blocks_ ? kernels::Kernel::kQuantizedLinear : kernels::Kernel::kPackedLinear;
  std::string reason;
  const auto* const backend = kernels::choose_backend({.dtype = dtype, .kernel = kernel}, &reason);
  if (backend == nullptr) {
    TORCH_WARN_ONCE("moh's packed linear maps run LibTorch's product: ", reason);
    Tensor y = at::matmul(rows.to(at::kFloat), matrix().t());
    if (bias_.defined()) y = y + bias_;
    if (heads.side == Side::kOutputs) {
      const Tensor gates = at::from_blob(const_cast<float*>(heads.gates), {y.size(0), heads.count}, at::kFloat);
      y = y.masked_fill(gates.eq(0).repeat_interleave(heads.size, 1), 0);
    }
    return y.to(x.scalar_type()).view(sizes);
  }
  const Tensor y = at::empty({rows.size(0), outputs_}, x.options().requires_grad(false));
  const auto run_kernel = [&](auto p, const auto& function) {
    p.rows = rows.size(0);
    p.inputs = inputs_;
    p.outputs = outputs_;
    p.dtype = dtype;
    fill(p.x, rows);
    p.weight = packed_.const_data_ptr();
    p.bias = bias_.defined() ? bias_.const_data_ptr<float>() : nullptr;
    fill(p.y, y);
    p.heads = heads;
    p.parallel = torch_parallel();
    function(p);
  };
  if (blocks_) {
    run_kernel(kernels::QuantizedLinearParams{.blocks = *blocks_}, backend->quantized_linear);
  } else {
    run_kernel(kernels::PackedLinearParams{.weight_dtype = kernel_dtype(packed_.scalar_type())},
               backend->packed_linear);
  }
  return y.view(sizes);
}

RowwiseProducts::RowwiseProducts() : before_(rowwise()) { rowwise() = true; }
RowwiseProducts::~RowwiseProducts() { rowwise() = before_; }
bool RowwiseProducts::wanted() { return rowwise(); }

}  // namespace moh::ops
