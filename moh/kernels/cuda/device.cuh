// What the CUDA kernels share: error checks, element types, index lists per head, reductions over a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#include "moh/base/error.h"
#include "moh/kernels/head_attention.h"

#define MOH_CUDA_CHECK(call)                                                                     \
  do {                                                                                           \
    const cudaError_t status = (call);                                                           \
    MOH_CHECK(status == cudaSuccess, "[cuda] ", #call, " failed: ", cudaGetErrorString(status)); \
  } while (false)

namespace moh::kernels::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // of a block; each works on one row (forward, dQ) or one key (dK, dV)
constexpr int kTile = 32;  // keys or rows staged in shared memory, one a lane
constexpr int kMaxHeadDim = 256;
constexpr int kPerLane = kMaxHeadDim / kWarp;  // elements of a head vector that one lane owns
constexpr int kDecodePart = 256;               // keys of one block of the decode kernel

inline __device__ float load(const float* p) { return *p; }
inline __device__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
inline __device__ float load(const __half* p) { return __half2float(*p); }
inline __device__ void store(float* p, float value) { *p = value; }
inline __device__ void store(__nv_bfloat16* p, float value) { *p = __float2bfloat16(value); }
inline __device__ void store(__half* p, float value) { *p = __float2half(value); }

// Strides of a [B, T, H, D] tensor: address of the vector (b, t, h).
template <class T>
struct View {
  T* data;
  std::int64_t stride[4];
  __device__ T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * stride[0] + t * stride[1] + h * stride[2];
  }
};
template <class T>
View<const T> view(const Input4& tensor) {
  return {static_cast<const T*>(tensor.data), {tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]}};
}
template <class T>
View<T> view(const Output4& tensor) {
  return {static_cast<T*>(tensor.data), {tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]}};
}

// Blocks of kWarps rows that hold `count` of them.
inline __host__ __device__ unsigned block_count(std::int64_t count) {
  return static_cast<unsigned>((count + kWarps - 1) / kWarps);
}
// One long dimension, because the others end at 65,535; block b belongs to head b / blocks.
inline unsigned grid_of(std::int64_t heads, std::int64_t blocks) {
  MOH_CHECK(heads * blocks <= INT32_MAX, "[cuda] a call of ", heads, " heads x ", blocks,
            " blocks is too large for one launch; split the batch");
  return static_cast<unsigned>(heads * blocks);
}

struct Sizes {
  std::int64_t batch, queries, keys, heads, kv_heads, dim;
  bool causal;
  float scale;
  // Of a gate and of lse.
  __device__ std::int64_t place(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return (b * queries + t) * heads + h;
  }
  // Number of keys that token t sees.
  __device__ std::int64_t visible(std::int64_t t) const {
    if (!causal) return keys;
    const std::int64_t count = t + keys - queries + 1;
    return count < 0 ? 0 : count > keys ? keys : count;
  }
};
inline Sizes sizes_of(const HeadAttentionParams& p) {
  // A plain call (CallTraits): sequence b is batch b.
  const Sequence none, &any = p.num_sequences > 0 ? p.sequences[0] : none;
  return {p.num_sequences, any.queries, any.keys, p.num_heads, p.num_kv_heads, p.head_dim, p.variant.causal, p.scale};
}

inline __device__ float warp_sum(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
// NaN wins, unlike in fmaxf: it must reach the output.
inline __device__ float larger(float a, float b) { return b > a || isnan(b) ? b : a; }
inline __device__ float warp_max(float value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = larger(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// Puts a kernel into the queue of `stream`. The usual <<<...>>> is nvcc's alone; these files are also run on the CPU,
// by tests (tests/kernels/emulated_cuda).
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, std::size_t shared_bytes,
            cudaStream_t stream, Arguments&&... arguments) {
  constexpr std::size_t kGranted = 48 * 1024;  // of shared memory, without being asked for
  if (shared_bytes > kGranted) {
    MOH_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  MOH_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// Device memory for the length of one call, in the order of its stream.
class Workspace {
 public:
  Workspace(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
    if (bytes > 0) MOH_CUDA_CHECK(cudaMallocAsync(&data_, bytes, stream));
  }
  ~Workspace() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_;
};

// The tokens of each head, in ascending order: rows[(b * H + h) * T + i] for i < counts[b * H + h].
void list_rows(const float* gates, const Sizes& sizes, std::int32_t* rows, std::int32_t* counts, cudaStream_t stream);

// Calls run with a null pointer of the element type.
template <class Run>
void visit_dtype(DType dtype, const Run& run) {
  if (dtype == DType::kFloat32) return run(static_cast<float*>(nullptr));
  if (dtype == DType::kBFloat16) return run(static_cast<__nv_bfloat16*>(nullptr));
  run(static_cast<__half*>(nullptr));
}

inline cudaStream_t stream_of(const HeadAttentionParams& p) { return static_cast<cudaStream_t>(p.stream); }

// A bias of any strides, [B, H, T, S], and of any type; data may be null.
struct BiasView {
  const void* data;
  std::int64_t stride[4];
  DType dtype;
  __device__ float at(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t s) const {
    if (data == nullptr) return 0.0F;
    const std::int64_t place = b * stride[0] + h * stride[1] + t * stride[2] + s * stride[3];
    if (dtype == DType::kFloat32) return load(static_cast<const float*>(data) + place);
    if (dtype == DType::kBFloat16) return load(static_cast<const __nv_bfloat16*>(data) + place);
    return load(static_cast<const __half*>(data) + place);
  }
};
inline BiasView bias_view(const AttentionVariant& variant) {
  const std::int64_t* const stride = variant.bias.stride;
  return {variant.bias.data, {stride[0], stride[1], stride[2], stride[3]}, variant.bias_dtype};
}

}  // namespace moh::kernels::cuda
