#include "tests/kernels/emulated_cuda/kernels.h"
// clang-format off
#include "moh/kernels/cuda/head_attention_backward.cu"
