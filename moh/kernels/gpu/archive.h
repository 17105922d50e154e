// The compiled kernels inside the library: machine code for some architectures and PTX for GPUs newer than these, with
// what each needs at its launch. moh/kernels/triton/archive.py writes the table at build time from the kernels' own
// parameters and constants, so that no order and no size is written down a second time in C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moh::kernels::gpu {

// A row as it is written.
struct KernelRow {
  const char* variant;   // "attention_forward-bf16-d64-soft_cap"
  const char* function;  // its name in the image
  int arch;              // 80: compute capability 8.0
  bool ptx;              // the image is text that the driver compiles
  std::size_t offset;    // of the image in kImages
  int warps;
  int shared;              // bytes
  const char* parameters;  // "query:p:16 q_b:l:8 keys:i:1 scale:f:1": name, type, divisor
  const char* constants;   // "BLOCK_M=128 BLOCK_N=64"
};
extern const KernelRow kRows[];
extern const std::size_t kNumRows;
extern const unsigned char* const kImages;
extern const char* const kNotBuilt;     // why this build has no kernels; empty: it has
extern const std::int64_t kFewQueries;  // sequences of up to so many queries are decoded (triton/tiles.py)
extern const std::int64_t kFewRows;     // projections of up to so many rows have small tiles

struct Parameter {
  std::string name;
  char type;             // p address, l and i integers of 64 and 32 bits, f float
  std::int64_t divisor;  // the kernel relies on a multiple of this
};

struct Kernel {
  const KernelRow* row;
  std::vector<Parameter> parameters;

  const void* image() const { return kImages + row->offset; }
  // The value of a constant that the kernel was compiled with.
  std::int64_t constant(std::string_view name) const;
};

// The kernel for GPUs of this compute capability (90: 9.0); nullptr where none was built.
const Kernel* find_kernel(const std::string& variant, int capability);
// Empty, or why there is none: which variant it is and what there is instead.
std::string missing_kernel(const std::string& variant, int capability);
// "sm_80, sm_90, sm_100 and PTX of sm_80"
std::string built_architectures();
// Whether any kernel runs on such GPUs.
bool serves(int capability);

}  // namespace moh::kernels::gpu
