// Element types that kernels read and write. Arithmetic is always fp32 (reference: fp64).
#pragma once

#include <cstdint>

namespace moh::kernels {

enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "fp32";
    case DType::kBFloat16:
      return "bf16";
    case DType::kFloat16:
      return "fp16";
    case DType::kFloat64:
      return "fp64";
  }
  return "?";
}

}  // namespace moh::kernels
