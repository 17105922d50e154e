// What autocast does to each operator, as it does to torch's own: attention and convolutions compute in the autocast
// type, the choice of heads in fp32. Gates, biases and the small tables of aggregated attention keep their type:
// kernels read them in fp32. project_heads and combine_heads have their rules beside them (projection.cpp).
#include <ATen/autocast_mode.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace moh::ops {
namespace {

constexpr std::array<std::string_view, 6> kLowPrecision = {"query", "key", "value", "pool_key", "pool_value", "x"};
constexpr std::array<std::string_view, 2> kFp32 = {"products", "probabilities"};

bool contains(const auto& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The same operator again without autocast, arguments cast by their names in the schema.
template <at::DeviceType device>
void cast_and_call(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto& arguments = op.schema().arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    c10::IValue& value = torch::jit::peek(*stack, i, arguments.size());
    if (!value.isTensor()) continue;
    if (contains(kLowPrecision, arguments[i].name())) {
      value = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), value.toTensor(), device);
    } else if (contains(kFp32, arguments[i].name())) {
      value = at::autocast::cached_cast(at::kFloat, value.toTensor(), device);
    }
  }
  op.callBoxed(stack);
}

template <at::DeviceType device>
void set_rules(torch::Library& m) {
  for (const char* name : {"head_attention_forward", "head_attention_paged", "aggregated_attention",
                           "gated_convolution", "two_stage_gates", "load_balance_loss"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast_and_call<device>>());
  }
  // Selection and gradients take tensors as they come: a backward pass must meet the types of its forward pass.
  // head_attention, moh_attention and the routers are made of operators that have rules, or in fp32 by themselves.
  for (const char* name : {"select_top_k", "list_rows", "head_attention_backward", "head_weight_gradient",
                           "aggregated_attention_backward", "gated_convolution_backward"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(moh, AutocastCPU, m) { set_rules<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(moh, AutocastCUDA, m) { set_rules<at::kCUDA>(m); }

}  // namespace moh::ops
