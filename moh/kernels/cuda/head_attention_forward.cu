// Forward on the device. A block takes kWarps of the rows that use one head (gathered by the head's list); keys and
// values pass through shared memory in tiles of kTile as fp32; scores have one key a lane, the output one part of the
// head vector a lane. Reads each key and value once per block, writes only the rows of the list; the other rows are
// zeroed first. Few rows (decode): blocks share out the keys instead, and a second kernel joins their parts.
#include "moh/kernels/cuda/backend.h"
#include "moh/kernels/cuda/device.cuh"

namespace moh::kernels::cuda {
namespace {

constexpr std::int64_t kDecodeRows = 4;  // up to this many queries

// Rows that do not use their head: out = 0, lse = -inf. One warp a row.
template <class T>
__global__ void zero_skipped(View<T> out, float* lse, const float* gates, Sizes sizes) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= sizes.batch * sizes.queries * sizes.heads || gates[row] != 0.0F) return;
  const std::int64_t h = row % sizes.heads, t = row / sizes.heads % sizes.queries,
                     b = row / sizes.heads / sizes.queries;
  T* to = out.at(b, t, h);
  for (std::int64_t d = threadIdx.x % kWarp; d < sizes.dim; d += kWarp) store(to + d * out.stride[3], 0.0F);
  if (lse != nullptr && threadIdx.x % kWarp == 0) lse[row] = -INFINITY;
}

// The running softmax of one row, spread over a warp: lane l owns the elements l, l + 32, ...
struct Softmax {
  float maximum = -INFINITY, sum = 0.0F;
  float acc[kPerLane] = {};

  // Before probabilities against a new maximum are added; gives the factor that the old ones shrink by.
  __device__ void raise(float candidate) {
    if (candidate <= maximum) return;
    const float shrink = maximum == -INFINITY ? 0.0F : expf(maximum - candidate);
    maximum = candidate;
    sum *= shrink;
    for (int i = 0; i < kPerLane; ++i) acc[i] *= shrink;
  }
};

template <class T>
__global__ void forward_kernel(View<const T> query, View<const T> key, View<const T> value, BiasView bias,
                               const float* gates, View<T> out, float* lse, const std::int32_t* rows,
                               const std::int32_t* counts, Sizes sizes) {
  extern __shared__ float shared[];
  const unsigned blocks = block_count(sizes.queries);  // of a head
  const std::int64_t bh = blockIdx.x / blocks, b = bh / sizes.heads, h = bh % sizes.heads;
  const std::int64_t kv = h / (sizes.heads / sizes.kv_heads);
  const std::int32_t count = counts[bh];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x % blocks) * kWarps;
  if (first >= count) return;  // the whole block
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int32_t* list = rows + bh * sizes.queries;
  const bool active = first + warp < count;
  const std::int64_t t = list[active ? first + warp : first];
  const std::int64_t seen = active ? sizes.visible(t) : 0;
  // Lists ascend: the last row of the block sees most.
  const std::int64_t last = list[first + kWarps <= count ? first + kWarps - 1 : count - 1];
  const std::int64_t all_seen = sizes.visible(last);

  const int pitch = static_cast<int>(sizes.dim) + 1;  // one more: lanes that read one column each hit different banks
  float* const q = shared + warp * sizes.dim;
  float* const keys = shared + kWarps * sizes.dim;
  float* const values = keys + kTile * pitch;
  for (std::int64_t d = lane; d < sizes.dim; d += kWarp) {
    q[d] = load(query.at(b, t, h) + d * query.stride[3]) * sizes.scale;
  }

  Softmax softmax;
  for (std::int64_t start = 0; start < all_seen; start += kTile) {
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < kTile * sizes.dim; i += kWarps * kWarp) {
      const std::int64_t s = i / sizes.dim, d = i % sizes.dim;
      const bool inside = start + s < all_seen;
      keys[s * pitch + d] = inside ? load(key.at(b, start + s, kv) + d * key.stride[3]) : 0.0F;
      values[s * pitch + d] = inside ? load(value.at(b, start + s, kv) + d * value.stride[3]) : 0.0F;
    }
    __syncthreads();
    if (start >= seen) continue;  // the whole warp; it still helps to load
    const std::int64_t s = start + lane;
    float score = -INFINITY;
    if (s < seen) {
      float dot = 0.0F;
      for (std::int64_t d = 0; d < sizes.dim; ++d) dot += q[d] * keys[lane * pitch + d];
      score = dot + bias.at(b, h, t, s);
    }
    softmax.raise(warp_max(score));
    if (softmax.maximum == -INFINITY) continue;  // a bias may hide all keys so far
    const float p = expf(score - softmax.maximum);
    softmax.sum += warp_sum(p);
    const int inside = seen - start < kTile ? static_cast<int>(seen - start) : kTile;  // a hidden value may be NaN
    for (int j = 0; j < inside; ++j) {
      const float weight = __shfl_sync(0xffffffffu, p, j);
      for (int i = 0; i < kPerLane; ++i) {
        const int d = lane + i * kWarp;
        if (d < sizes.dim) softmax.acc[i] += weight * values[j * pitch + d];
      }
    }
  }
  if (!active) return;
  const float gate = gates[(b * sizes.queries + t) * sizes.heads + h];
  const float factor = softmax.sum == 0.0F ? 0.0F : gate / softmax.sum;  // the sum may be NaN
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d < sizes.dim) store(out.at(b, t, h) + d * out.stride[3], softmax.acc[i] * factor);
  }
  if (lse != nullptr && lane == 0) {
    lse[sizes.place(b, t, h)] = softmax.sum == 0.0F ? -INFINITY : softmax.maximum + logf(softmax.sum);
  }
}

// Decode. Block row * num_parts + part: every warp takes each kWarps-th key of the part, lanes side by side along the
// head vector; then the warps' softmaxes are joined. parts[(row * num_parts + part) * (D + 2)] = maximum, sum, D
// accumulated elements.
template <class T>
__global__ void decode_parts(View<const T> query, View<const T> key, View<const T> value, BiasView bias,
                             const float* gates, float* parts, unsigned num_parts, Sizes sizes) {
  extern __shared__ float shared[];
  float* const maxima = shared;         // [kWarps]
  float* const sums = shared + kWarps;  // [kWarps]
  float* const joined = sums + kWarps;  // [kWarps, D]
  const std::int64_t row = blockIdx.x / num_parts;
  if (gates[row] == 0.0F) return;
  const std::int64_t h = row % sizes.heads, t = row / sizes.heads % sizes.queries,
                     b = row / sizes.heads / sizes.queries;
  const std::int64_t kv = h / (sizes.heads / sizes.kv_heads);
  const std::int64_t start = static_cast<std::int64_t>(blockIdx.x % num_parts) * kDecodePart;
  const std::int64_t seen = sizes.visible(t);
  const std::int64_t end = start + kDecodePart < seen ? start + kDecodePart : seen;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  float q[kPerLane];
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    q[i] = d < sizes.dim ? load(query.at(b, t, h) + d * query.stride[3]) * sizes.scale : 0.0F;
  }
  Softmax softmax;
  for (std::int64_t s = start + warp; s < end; s += kWarps) {
    const T* k = key.at(b, s, kv);
    const T* v = value.at(b, s, kv);
    float dot = 0.0F;
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + i * kWarp;
      if (d < sizes.dim) dot += q[i] * load(k + d * key.stride[3]);
    }
    const float score = warp_sum(dot) + bias.at(b, h, t, s);
    if (score == -INFINITY) continue;
    softmax.raise(score);
    const float p = expf(score - softmax.maximum);
    softmax.sum += p;
    for (int i = 0; i < kPerLane; ++i) {
      const int d = lane + i * kWarp;
      if (d < sizes.dim) softmax.acc[i] += p * load(v + d * value.stride[3]);
    }
  }
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + i * kWarp;
    if (d < sizes.dim) joined[warp * sizes.dim + d] = softmax.acc[i];
  }
  if (lane == 0) {
    maxima[warp] = softmax.maximum;
    sums[warp] = softmax.sum;
  }
  __syncthreads();
  float maximum = -INFINITY, sum = 0.0F;
  for (int w = 0; w < kWarps; ++w) maximum = larger(maximum, maxima[w]);
  for (int w = 0; w < kWarps; ++w) sum += sums[w] == 0.0F ? 0.0F : sums[w] * expf(maxima[w] - maximum);
  float* const to = parts + static_cast<std::int64_t>(blockIdx.x) * (sizes.dim + 2);
  if (threadIdx.x == 0) {
    to[0] = maximum;
    to[1] = sum;
  }
  for (std::int64_t d = threadIdx.x; d < sizes.dim; d += kWarps * kWarp) {
    float element = 0.0F;
    for (int w = 0; w < kWarps; ++w)
      element += sums[w] == 0.0F ? 0.0F : joined[w * sizes.dim + d] * expf(maxima[w] - maximum);
    to[2 + d] = element;
  }
}

template <class T>
__global__ void decode_join(const float* parts, int num_parts, const float* gates, View<T> out, float* lse,
                            Sizes sizes) {
  const std::int64_t row = blockIdx.x;
  const float gate = gates[row];
  if (gate == 0.0F) return;
  const std::int64_t h = row % sizes.heads, t = row / sizes.heads % sizes.queries,
                     b = row / sizes.heads / sizes.queries;
  const float* const from = parts + row * num_parts * (sizes.dim + 2);
  float maximum = -INFINITY, sum = 0.0F;
  for (int i = 0; i < num_parts; ++i) maximum = larger(maximum, from[i * (sizes.dim + 2)]);
  for (int i = 0; i < num_parts; ++i) {
    const float* part = from + i * (sizes.dim + 2);
    sum += part[1] == 0.0F ? 0.0F : part[1] * expf(part[0] - maximum);
  }
  for (std::int64_t d = threadIdx.x; d < sizes.dim; d += blockDim.x) {
    float element = 0.0F;
    for (int i = 0; i < num_parts; ++i) {
      const float* part = from + i * (sizes.dim + 2);
      element += part[1] == 0.0F ? 0.0F : part[2 + d] * expf(part[0] - maximum);
    }
    store(out.at(b, t, h) + d * out.stride[3], sum == 0.0F ? 0.0F : element * gate / sum);
  }
  if (lse != nullptr && threadIdx.x == 0) {
    lse[sizes.place(b, t, h)] = sum == 0.0F ? -INFINITY : maximum + logf(sum);
  }
}

template <class T>
void forward(const HeadAttentionParams& p) {
  const Sizes sizes = sizes_of(p);
  const cudaStream_t stream = stream_of(p);
  const std::int64_t all_rows = sizes.batch * sizes.queries * p.num_heads;
  if (all_rows == 0) return;
  const auto query = view<T>(p.query), key = view<T>(p.key), value = view<T>(p.value);
  const BiasView bias = bias_view(p.variant);
  const View<T> out = view<T>(p.out);
  launch(zero_skipped<T>, block_count(all_rows), kWarps * kWarp, 0, stream, out, p.lse, p.selection.gates, sizes);

  if (sizes.queries <= kDecodeRows) {
    const std::int64_t num_parts = sizes.keys == 0 ? 1 : (sizes.keys + kDecodePart - 1) / kDecodePart;
    const Workspace parts(sizeof(float) * all_rows * num_parts * (p.head_dim + 2), stream);
    const std::size_t shared = sizeof(float) * kWarps * (p.head_dim + 2);
    launch(decode_parts<T>, grid_of(all_rows, num_parts), kWarps * kWarp, shared, stream, query, key, value, bias,
           p.selection.gates, parts.as<float>(), static_cast<unsigned>(num_parts), sizes);
    launch(decode_join<T>, static_cast<unsigned>(all_rows), 128, 0, stream, parts.as<float>(),
           static_cast<int>(num_parts), p.selection.gates, out, p.lse, sizes);
    return;
  }
  const Workspace rows(sizeof(std::int32_t) * all_rows, stream);
  const Workspace counts(sizeof(std::int32_t) * sizes.batch * p.num_heads, stream);
  list_rows(p.selection.gates, sizes, rows.as<std::int32_t>(), counts.as<std::int32_t>(), stream);
  const std::size_t shared = sizeof(float) * (kWarps * p.head_dim + 2 * kTile * (p.head_dim + 1));
  launch(forward_kernel<T>, grid_of(sizes.batch * p.num_heads, block_count(sizes.queries)), kWarps * kWarp, shared,
         stream, query, key, value, bias, p.selection.gates, out, p.lse, rows.as<std::int32_t>(),
         counts.as<std::int32_t>(), sizes);
}

}  // namespace

void head_attention_forward(const HeadAttentionParams& params) {
  visit_dtype(params.dtype, [&]<class T>(T*) { forward<T>(params); });
}

}  // namespace moh::kernels::cuda
