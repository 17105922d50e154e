// Backward on the device, from lse alone. With P = exp(score - lse) and dP = <grad_out, value>:
//
//   grad_gates = sum_s P dP        delta = gate * grad_gates        dS = P (gate dP - delta)
//   grad_query = scale dS K        grad_key = scale dS^T Q          grad_value = gate P^T grad_out        grad_bias =
//   dS
//
// Two kernels, both without atomics, so that equal inputs give equal bits: one over rows (grad_gates and delta in a
// first pass over the keys, grad_query and grad_bias in a second), one over keys (grad_key, grad_value; it sums over
// the query heads of the KV head and over each head's list of rows).
#include "moh/kernels/cuda/backend.h"
#include "moh/kernels/cuda/device.cuh"

namespace moh::kernels::cuda {
namespace {

template <class T>
struct BackwardViews {
  View<const T> query, key, value, grad_out;
  BiasView bias;
  View<T> grad_query, grad_key, grad_value;
  const float* gates;
  const float* lse;
  float* grad_gates;
  float* grad_bias;
  float* delta;  // [B, H, T]
  const std::int32_t* rows;
  const std::int32_t* counts;
};

// Rows that do not use their head get grad_query = 0. One warp a row.
template <class T>
__global__ void zero_skipped_rows(View<T> grad_query, const float* gates, Sizes sizes) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= sizes.batch * sizes.queries * sizes.heads || gates[row] != 0.0F) return;
  const std::int64_t h = row % sizes.heads, t = row / sizes.heads % sizes.queries,
                     b = row / sizes.heads / sizes.queries;
  T* to = grad_query.at(b, t, h);
  for (std::int64_t d = threadIdx.x % kWarp; d < sizes.dim; d += kWarp) store(to + d * grad_query.stride[3], 0.0F);
}

// Block: kWarps rows of one head, each warp one; keys and values in tiles through shared memory, one key a lane.
template <class T>
__global__ void backward_rows(BackwardViews<T> v, Sizes sizes) {
  extern __shared__ float shared[];
  const unsigned blocks = block_count(sizes.queries);  // of a head
  const std::int64_t bh = blockIdx.x / blocks, b = bh / sizes.heads, h = bh % sizes.heads;
  const std::int64_t kv = h / (sizes.heads / sizes.kv_heads);
  const std::int32_t count = v.counts[bh];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x % blocks) * kWarps;
  if (first >= count) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int32_t* list = v.rows + bh * sizes.queries;
  const bool active = first + warp < count;
  const std::int64_t t = list[active ? first + warp : first];
  const std::int64_t seen = active ? sizes.visible(t) : 0;
  const std::int64_t all_seen = sizes.visible(list[first + kWarps <= count ? first + kWarps - 1 : count - 1]);
  const float lse = v.lse[sizes.place(b, t, h)];
  const float gate = v.gates[(b * sizes.queries + t) * sizes.heads + h];

  const int pitch = static_cast<int>(sizes.dim) + 1;
  float* const q = shared + warp * 2 * sizes.dim;
  float* const g = q + sizes.dim;
  float* const keys = shared + kWarps * 2 * sizes.dim;
  float* const values = keys + kTile * pitch;
  for (std::int64_t d = lane; d < sizes.dim; d += kWarp) {
    q[d] = load(v.query.at(b, t, h) + d * v.query.stride[3]) * sizes.scale;
    g[d] = load(v.grad_out.at(b, t, h) + d * v.grad_out.stride[3]);
  }

  float grad_gate = 0.0F, delta = 0.0F;
  float acc[kPerLane] = {};
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t start = 0; start < all_seen; start += kTile) {
      __syncthreads();
      for (std::int64_t i = threadIdx.x; i < kTile * sizes.dim; i += kWarps * kWarp) {
        const std::int64_t s = i / sizes.dim, d = i % sizes.dim;
        const bool inside = start + s < all_seen;
        keys[s * pitch + d] = inside ? load(v.key.at(b, start + s, kv) + d * v.key.stride[3]) : 0.0F;
        values[s * pitch + d] = inside ? load(v.value.at(b, start + s, kv) + d * v.value.stride[3]) : 0.0F;
      }
      __syncthreads();
      if (start >= seen || lse == -INFINITY) continue;
      const std::int64_t s = start + lane;
      float p = 0.0F, grad_p = 0.0F;
      if (s < seen) {
        float dot = 0.0F;
        for (std::int64_t d = 0; d < sizes.dim; ++d) {
          dot += q[d] * keys[lane * pitch + d];
          grad_p += g[d] * values[lane * pitch + d];
        }
        p = expf(dot + v.bias.at(b, h, t, s) - lse);
      }
      if (pass == 0) {
        grad_gate += p * grad_p;  // summed over the lanes at the end
        continue;
      }
      const float grad_score = p * (gate * grad_p - delta);
      if (v.grad_bias != nullptr && s < seen) v.grad_bias[(bh * sizes.queries + t) * sizes.keys + s] = grad_score;
      const int inside = seen - start < kTile ? static_cast<int>(seen - start) : kTile;  // a hidden key may be NaN
      for (int j = 0; j < inside; ++j) {
        const float weight = __shfl_sync(0xffffffffu, grad_score, j);
        for (int i = 0; i < kPerLane; ++i) {
          const int d = lane + i * kWarp;
          if (d < sizes.dim) acc[i] += weight * keys[j * pitch + d];
        }
      }
    }
    if (pass == 0) {
      grad_gate = warp_sum(grad_gate);
      delta = gate * grad_gate;
    }
  }
  if (!active) return;
  if (lane == 0) {
    v.delta[bh * sizes.queries + t] = delta;
    if (v.grad_gates != nullptr) v.grad_gates[(b * sizes.queries + t) * sizes.heads + h] = grad_gate;
  }
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d < sizes.dim) store(v.grad_query.at(b, t, h) + d * v.grad_query.stride[3], acc[i] * sizes.scale);
  }
}

// Block: kWarps keys of one KV head, each warp one; the rows of every query head of the group in tiles through shared
// memory, one row a lane.
template <class T>
__global__ void backward_keys(BackwardViews<T> v, Sizes sizes) {
  extern __shared__ float shared[];
  const unsigned blocks = block_count(sizes.keys);  // of a KV head
  const std::int64_t b = blockIdx.x / blocks / sizes.kv_heads, kv = blockIdx.x / blocks % sizes.kv_heads;
  const std::int64_t group = sizes.heads / sizes.kv_heads;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x % blocks) * kWarps, s = first + warp;
  const bool active = s < sizes.keys;

  const int pitch = static_cast<int>(sizes.dim) + 1;
  float* const k = shared + warp * 2 * sizes.dim;
  float* const w = k + sizes.dim;
  float* const queries = shared + kWarps * 2 * sizes.dim;
  float* const grads = queries + kTile * pitch;
  for (std::int64_t d = lane; d < sizes.dim; d += kWarp) {
    k[d] = active ? load(v.key.at(b, s, kv) + d * v.key.stride[3]) : 0.0F;
    w[d] = active ? load(v.value.at(b, s, kv) + d * v.value.stride[3]) : 0.0F;
  }

  float grad_key[kPerLane] = {}, grad_value[kPerLane] = {};
  for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h) {
    const std::int64_t bh = b * sizes.heads + h;
    const std::int32_t count = v.counts[bh];
    const std::int32_t* list = v.rows + bh * sizes.queries;
    for (std::int32_t start = 0; start < count; start += kTile) {
      // Lists ascend: if the tile's last row sees none of the block's keys, none does.
      if (sizes.visible(list[start + kTile < count ? start + kTile - 1 : count - 1]) <= first) continue;
      __syncthreads();
      for (std::int64_t i = threadIdx.x; i < kTile * sizes.dim; i += kWarps * kWarp) {
        const std::int64_t r = i / sizes.dim, d = i % sizes.dim;
        const bool inside = start + r < count;
        const std::int64_t t = inside ? list[start + r] : 0;
        queries[r * pitch + d] = inside ? load(v.query.at(b, t, h) + d * v.query.stride[3]) * sizes.scale : 0.0F;
        grads[r * pitch + d] = inside ? load(v.grad_out.at(b, t, h) + d * v.grad_out.stride[3]) : 0.0F;
      }
      __syncthreads();
      float p = 0.0F, grad_score = 0.0F;  // p times the gate
      if (active && start + lane < count) {
        const std::int64_t t = list[start + lane];
        const float lse = v.lse[sizes.place(b, t, h)];
        if (s < sizes.visible(t) && lse != -INFINITY) {
          float dot = 0.0F, grad_p = 0.0F;
          for (std::int64_t d = 0; d < sizes.dim; ++d) {
            dot += queries[lane * pitch + d] * k[d];
            grad_p += grads[lane * pitch + d] * w[d];
          }
          const float gate = v.gates[(b * sizes.queries + t) * sizes.heads + h];
          const float probability = expf(dot + v.bias.at(b, h, t, s) - lse);
          p = probability * gate;
          grad_score = probability * (gate * grad_p - v.delta[bh * sizes.queries + t]);
        }
      }
      for (int j = 0; j < kTile; ++j) {
        const float weight = __shfl_sync(0xffffffffu, p, j), weight_key = __shfl_sync(0xffffffffu, grad_score, j);
        if (weight == 0.0F && weight_key == 0.0F) continue;  // rows that do not see the key may hold NaN
        for (int i = 0; i < kPerLane; ++i) {
          const int d = lane + i * kWarp;
          if (d >= sizes.dim) continue;
          grad_value[i] += weight * grads[j * pitch + d];
          grad_key[i] += weight_key * queries[j * pitch + d];  // the queries carry the scale
        }
      }
    }
  }
  if (!active) return;
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d >= sizes.dim) continue;
    store(v.grad_key.at(b, s, kv) + d * v.grad_key.stride[3], grad_key[i]);
    store(v.grad_value.at(b, s, kv) + d * v.grad_value.stride[3], grad_value[i]);
  }
}

template <class T>
void backward(const HeadAttentionParams& p) {
  const Sizes sizes = sizes_of(p);
  const cudaStream_t stream = stream_of(p);
  const std::int64_t all_rows = sizes.batch * sizes.queries * p.num_heads;
  const Workspace rows(sizeof(std::int32_t) * all_rows, stream);
  const Workspace counts(sizeof(std::int32_t) * sizes.batch * p.num_heads, stream);
  const Workspace delta(sizeof(float) * all_rows, stream);
  BackwardViews<T> v{view<T>(p.query),
                     view<T>(p.key),
                     view<T>(p.value),
                     view<T>(p.grad_out),
                     bias_view(p.variant),
                     view<T>(p.grad_query),
                     view<T>(p.grad_key),
                     view<T>(p.grad_value),
                     p.selection.gates,
                     p.lse,
                     p.grad_gates,
                     p.grad_bias.data,
                     delta.template as<float>(),
                     rows.template as<std::int32_t>(),
                     counts.template as<std::int32_t>()};
  if (p.grad_gates != nullptr) MOH_CUDA_CHECK(cudaMemsetAsync(p.grad_gates, 0, sizeof(float) * all_rows, stream));
  if (p.grad_bias.data != nullptr) {
    MOH_CUDA_CHECK(cudaMemsetAsync(p.grad_bias.data, 0, sizeof(float) * all_rows * sizes.keys, stream));
  }
  const std::size_t shared = sizeof(float) * (2 * kWarps * p.head_dim + 2 * kTile * (p.head_dim + 1));
  if (all_rows > 0) {
    list_rows(p.selection.gates, sizes, rows.template as<std::int32_t>(), counts.template as<std::int32_t>(), stream);
    launch(zero_skipped_rows<T>, block_count(all_rows), kWarps * kWarp, 0, stream, v.grad_query, p.selection.gates,
           sizes);
    launch(backward_rows<T>, grid_of(sizes.batch * p.num_heads, block_count(sizes.queries)), kWarps * kWarp, shared,
           stream, v, sizes);
  } else if (sizes.batch * p.num_heads > 0) {
    MOH_CUDA_CHECK(
        cudaMemsetAsync(counts.template as<void>(), 0, sizeof(std::int32_t) * sizes.batch * p.num_heads, stream));
  }
  if (sizes.batch * sizes.keys > 0) {
    launch(backward_keys<T>, grid_of(sizes.batch * p.num_kv_heads, block_count(sizes.keys)), kWarps * kWarp, shared,
           stream, v, sizes);
  }
}

}  // namespace

void head_attention_backward(const HeadAttentionParams& params) {
  visit_dtype(params.dtype, [&]<class T>(T*) { backward<T>(params); });
}

}  // namespace moh::kernels::cuda
