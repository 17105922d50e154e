// Runs a test on a backend by its name and skips it where this machine lacks the backend; threads for kernels.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "moh/kernels/backend.h"
#include "tests/kernels/memory/shared_memory.h"

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const auto& backend : moh::kernels::backends()) {
      if (backend.name == GetParam()) backend_ = &backend;
    }
    ASSERT_NE(backend_, nullptr);
    if (!backend_->unavailable_reason().empty()) GTEST_SKIP() << backend_->unavailable_reason();
  }
  void forward(const moh::kernels::HeadAttentionParams& params) const {
    backend_->attention_forward(params);
    wait_for_device();
  }
  void backward(const moh::kernels::HeadAttentionParams& params) const {
    backend_->attention_backward(params);
    wait_for_device();
  }
  bool on_gpu() const { return std::string(backend_->name) == "triton"; }
  bool takes(moh::kernels::DType dtype) const {
    moh::kernels::CallTraits call;
    call.dtype = dtype;
    call.on_cpu = !on_gpu();
    return backend_->unsupported_reason(call).empty();
  }
  // Kernels for GPUs are built for some calls alone, which others are asked first.
  bool takes(moh::kernels::HeadAttentionParams& params, bool backward = false) const {
    params.on_cpu = !on_gpu();
    return backend_
        ->unsupported_reason({.dtype = params.dtype,
                              .on_cpu = params.on_cpu,
                              .head_dim = params.head_dim,
                              .backward = backward,
                              .attention = &params})
        .empty();
  }
  // Where the dtype makes no difference.
  moh::kernels::DType some_dtype() const {
    return takes(moh::kernels::DType::kFloat32) ? moh::kernels::DType::kFloat32 : moh::kernels::DType::kBFloat16;
  }
  const moh::kernels::Backend* backend_ = nullptr;
};

// Names of the backends that have a kernel.
template <class Kernel>
std::vector<std::string> backends_with(Kernel moh::kernels::Backend::*kernel) {
  std::vector<std::string> names;
  for (const auto& backend : moh::kernels::backends()) {
    if (backend.*kernel != nullptr) names.emplace_back(backend.name);
  }
  return names;
}

inline moh::kernels::Parallel threads(int count) {
  moh::kernels::Parallel parallel;
  parallel.num_threads = count;
  parallel.run = [](int workers, moh::kernels::Parallel::Body body, void* context) {
    std::vector<std::thread> pool;
    for (int i = 0; i < workers; ++i) pool.emplace_back(body, context, i);
    for (auto& thread : pool) thread.join();
  };
  return parallel;
}
