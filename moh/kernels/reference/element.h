// One element of any type in memory, as float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "moh/kernels/dtype.h"

namespace moh::kernels::reference {

inline double to_double(const char* from, DType dtype) {
  switch (dtype) {
    case DType::kFloat64: {
      double value;
      std::memcpy(&value, from, 8);
      return value;
    }
    case DType::kFloat32: {
      float value;
      std::memcpy(&value, from, 4);
      return value;
    }
    case DType::kBFloat16: {
      std::uint16_t half;
      std::memcpy(&half, from, 2);
      const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    case DType::kFloat16: {
      _Float16 value;
      std::memcpy(&value, from, 2);
      return static_cast<double>(value);
    }
  }
  return 0;
}

inline void from_double(char* to, DType dtype, double value) {
  switch (dtype) {
    case DType::kFloat64:
      std::memcpy(to, &value, 8);
      return;
    case DType::kFloat32: {
      const auto narrow = static_cast<float>(value);
      std::memcpy(to, &narrow, 4);
      return;
    }
    case DType::kBFloat16: {
      const auto single = static_cast<float>(value);
      std::uint32_t bits;
      std::memcpy(&bits, &single, 4);
      const auto half = static_cast<std::uint16_t>(std::isnan(single) ? (bits >> 16) | 0x40U
                                                                      : (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
      std::memcpy(to, &half, 2);
      return;
    }
    case DType::kFloat16: {
      const auto narrow = static_cast<_Float16>(value);
      std::memcpy(to, &narrow, 2);
      return;
    }
  }
}

}  // namespace moh::kernels::reference
