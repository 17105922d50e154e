// The rate of fp32 multiply-adds when nothing has to be loaded: the ceiling of any fp32 kernel.
#pragma once

#include <cstdint>

namespace moh::bench {

// Runs `rounds` times a set of independent multiply-adds on vectors of 64 bytes (`wide`, AVX-512), else 32 (AVX2), else
// 16; returns the operations done, a multiply-add counting as 2; 0 where this is not measured (other CPUs than x86-64).
double fma_rounds(std::int64_t rounds, bool wide);

}  // namespace moh::bench
