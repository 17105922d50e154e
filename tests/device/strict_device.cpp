#include "tests/device/strict_device.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "moh/base/error.h"

namespace moh::test {
namespace {

using at::Tensor;
constexpr auto kDevice = at::kPrivateUse1;

std::atomic<std::int64_t> waits{0}, to_device{0};

// Addresses of the device are none of the CPU's: code that follows one ends there and then.
constexpr std::uintptr_t kElsewhere = std::uintptr_t{1} << 62;
void* elsewhere(void* memory) { return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(memory) + kElsewhere); }
void* here(const void* memory) {
  return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(memory) - kElsewhere);
}

struct Memory final : c10::Allocator {
  static void release(void* memory) { std::free(memory); }
  c10::DataPtr allocate(std::size_t bytes) override {
    void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
    return {elsewhere(memory), memory, &release, at::Device(kDevice, 0)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(here(to), here(from), bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kDevice, &memory)

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kDevice> {
  at::Device exchangeDevice(at::Device) const override { return {kDevice, 0}; }
  at::Device getDevice() const override { return {kDevice, 0}; }
  c10::Stream getStream(at::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, {kDevice, 0}); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// Backward passes ask whether there is an accelerator.
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};

bool is_ours(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDevice; }

// A tensor of the CPU on the same memory.
Tensor on_host(const Tensor& tensor) {
  if (!is_ours(tensor)) return tensor;
  void* const data = tensor.data_ptr();
  return at::from_blob(data == nullptr ? data : here(data), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU));
}

Tensor to_ours(const Tensor& tensor) {
  if (!tensor.defined() || is_ours(tensor)) return tensor;
  const Tensor dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
  const Tensor moved =
      at::empty_strided(dense.sizes(), dense.strides(), dense.options().device(at::Device(kDevice, 0)));
  if (dense.nbytes() > 0) std::memcpy(here(moved.data_ptr()), dense.data_ptr(), dense.nbytes());
  return moved;
}

// `target` gets the numbers and the shape of a result that the operation had to make anew.
void adopt(const Tensor& target, const Tensor& result) {
  const Tensor moved = to_ours(result);
  target.unsafeGetTensorImpl()->set_storage_keep_dtype(moved.storage());
  target.unsafeGetTensorImpl()->set_sizes_and_strides(moved.sizes(), moved.strides());
}

// Runs an operation on the CPU: its arguments lie in memory that the CPU can read.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack) : schema_(op.schema()) {
    arguments_ = torch::jit::last(*stack, schema_.arguments().size()).vec();
    std::vector<c10::IValue> host;
    for (std::size_t i = 0; i < arguments_.size(); ++i) host.push_back(convert(i));
    MOH_CHECK(!(has_ours_ && has_host_), "[strict_device] ", schema_.name(),
              " got a tensor of the CPU beside one of the device");
    torch::jit::drop(*stack, arguments_.size());
    for (const c10::IValue& value : host) stack->push_back(value);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    for (const auto& [target, result] : written_) {
      if (result.data_ptr() != on_host(target).data_ptr() || result.sizes() != target.sizes()) adopt(target, result);
    }
    take_results(stack);
  }

 private:
  bool is_written(std::size_t argument) const {
    const auto* alias = schema_.arguments()[argument].alias_info();
    return alias != nullptr && alias->isWrite();
  }
  Tensor convert_one(std::size_t argument, const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (is_ours(tensor)) {
      has_ours_ = true;
      // An `out` that is to be resized cannot stand on memory of somebody else's.
      const Tensor host = is_written(argument) && tensor.numel() == 0
                              ? at::empty({0}, tensor.options().device(at::kCPU))
                              : on_host(tensor);
      if (is_written(argument)) written_.emplace_back(tensor, host);
      return host;
    }
    has_host_ = has_host_ || tensor.dim() > 0;  // single numbers of the CPU are allowed, as on a GPU
    return tensor;
  }
  c10::IValue convert(std::size_t i) {
    const c10::IValue& value = arguments_[i];
    if (value.isTensor()) return convert_one(i, value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(convert_one(i, tensor));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorList().vec()) {
        list.push_back(tensor ? std::optional<Tensor>(convert_one(i, *tensor)) : tensor);
      }
      return list;
    }
    if (value.isDevice() && value.toDevice().type() == kDevice) return at::Device(at::kCPU);
    return value;
  }
  // Results that are arguments are these arguments; new tensors move; a number is something that the host waited for.
  void take_results(torch::jit::Stack* stack) {
    const auto& returns = schema_.returns();
    auto results = torch::jit::last(*stack, returns.size()).vec();
    torch::jit::drop(*stack, returns.size());
    for (std::size_t r = 0; r < returns.size(); ++r) {
      c10::IValue result = results[r];
      const auto* alias = returns[r].alias_info();
      if (alias != nullptr) {
        MOH_CHECK(alias->isWrite(), "[strict_device] ", schema_.name(), " makes a view and has to be registered");
        for (std::size_t i = 0; i < arguments_.size(); ++i) {
          const auto* other = schema_.arguments()[i].alias_info();
          if (other != nullptr && *other == *alias) result = arguments_[i];
        }
      } else if (result.isTensor()) {
        result = to_ours(result.toTensor());
      } else if (result.isTensorList()) {
        c10::List<Tensor> list;
        for (const Tensor& tensor : result.toTensorVector()) list.push_back(to_ours(tensor));
        result = list;
      } else {
        ++waits;
      }
      stack->push_back(result);
    }
  }

  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> arguments_;
  std::vector<std::pair<Tensor, Tensor>> written_;
  bool has_ours_ = false, has_host_ = false;
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack); }

Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   type.value_or(at::kFloat), format);
}
Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           type.value_or(at::kFloat));
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  if (!is_ours(to)) ++waits;
  if (!is_ours(from)) ++to_device;
  on_host(to).copy_(on_host(from));
  return to;
}
const Tensor& resize(const Tensor& tensor, at::IntArrayRef sizes, std::optional<at::MemoryFormat>) {
  if (tensor.sizes() == sizes) return tensor;
  MOH_CHECK(tensor.numel() == 0, "[strict_device] only empty tensors are resized");
  adopt(tensor, at::empty(sizes, tensor.options().device(at::kCPU)));
  return tensor;
}
Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                   std::int64_t groups) {
  MOH_CHECK(is_ours(input) && is_ours(weight), "[strict_device] a convolution got a tensor of the CPU");
  return to_ours(at::convolution(on_host(input), on_host(weight), bias ? std::optional<Tensor>(on_host(*bias)) : bias,
                                 stride, padding, dilation, transposed, output_padding, groups));
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        at::IntArrayRef stride, at::IntArrayRef padding,
                                                        at::IntArrayRef dilation, bool transposed,
                                                        at::IntArrayRef output_padding, std::int64_t groups,
                                                        std::array<bool, 3> mask) {
  const std::vector<std::int64_t> bias = {weight.size(transposed ? 1 : 0) * (transposed ? groups : 1)};
  auto [a, b, c] = at::convolution_backward(on_host(grad), on_host(input), on_host(weight), at::IntArrayRef(bias),
                                            stride, padding, dilation, transposed, output_padding, groups, mask);
  return {to_ours(a), to_ours(b), to_ours(c)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("resize_", &resize);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

}  // namespace

at::Device strict_device() {
  static Hooks hooks;
  static const bool known = [] {
    c10::register_privateuse1_backend("strict");
    at::RegisterPrivateUse1HooksInterface(&hooks);
    return true;
  }();
  static_cast<void>(known);
  return {kDevice, 0};
}

Traffic take_traffic() { return {waits.exchange(0), to_device.exchange(0)}; }

}  // namespace moh::test
