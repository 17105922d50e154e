// What this machine can do, measured in the run that reports it.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "bench/row.h"
#include "bench/work.h"

namespace moh::bench {

// Measured once for each dtype and thread count, in about two seconds (less where `seconds` for a case is small, and
// then less exact). Sets no thread count: measures with the one that is set.
//   gemm_gflops  the best of LibTorch's matrix products over several sizes, either operand transposed or not
//   read_gbs     a sum over a buffer of several times the last cache
//   copy_gbs     memcpy between two such buffers
//   fma_gflops   independent multiply-adds in registers, widest vectors of the instruction set that LibTorch uses;
//                0, not measured, on a GPU, where the others are LibTorch's products, sums and copies there
const Limits& machine_limits(const std::string& dtype, double seconds, at::Device device = at::kCPU);

// CPU, cores, instruction sets, memory, compiler, torch: what a published figure must name.
Row machine_description();

}  // namespace moh::bench
