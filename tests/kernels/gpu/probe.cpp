// The kernels for GPUs behind a C interface, for gpu_launch_test.py.
#include <algorithm>
#include <string>
#include <vector>

#include "moh/base/error.h"
#include "moh/kernels/backend.h"
#include "moh/kernels/gpu/archive.h"

using namespace moh::kernels;

namespace {

const Backend& backend() {
  for (const Backend& each : backends()) {
    if (std::string(each.name) == "triton") return each;
  }
  moh::fail("no backend triton");
}

template <class Tensor>
void fill(Tensor& tensor, decltype(Tensor::data) data, const std::int64_t* strides) {
  tensor.data = data;
  std::copy_n(strides, std::size(tensor.stride), tensor.stride);
}

// Runs what is given; its error as text, which the caller reads before the next call.
template <class F>
const char* told(F&& run) {
  static std::string text;
  text.clear();
  try {
    run();
  } catch (const moh::Error& error) {
    text = error.what();
  }
  return text.c_str();
}

void require(const std::string& reason) { MOH_CHECK(reason.empty(), reason); }

}  // namespace

extern "C" {

struct AttentionArguments {
  const void *query, *key, *value, *bias, *gates, *sink, *grad_out;
  void *out, *lse, *grad_query, *grad_key, *grad_value, *grad_gates, *grad_bias;
  std::int64_t query_strides[4], key_strides[4], value_strides[4], bias_strides[4], grad_out_strides[4];
  std::int64_t batch, queries, keys, heads, kv_heads, head_dim, window, causal, dtype, backward;
  std::int64_t num_sequences, max_queries, max_keys, page_size;
  const void *table, *pages;
  double scale, soft_cap;
  void* stream;
};

struct ProjectionArguments {
  const void *x, *heads, *weight, *bias, *gates;
  void* out;
  std::int64_t x_strides[2], heads_strides[3], weight_strides[3], out_strides[3];
  std::int64_t num_rows, num_heads, head_dim, width, dtype, which;
  void* stream;
};

const void* probe_images() { return gpu::kImages; }
const char* probe_unavailable() {
  return told([] { require(backend().unavailable_reason()); });
}

const char* probe_attention(const AttentionArguments* a) {
  return told([&] {
    HeadAttentionParams p;
    std::vector<Sequence> sequences;
    for (std::int64_t b = 0; b < a->batch; ++b)
      sequences.push_back({.batch = b, .queries = a->queries, .keys = a->keys});
    p.sequences = sequences.data();
    p.num_sequences = a->batch;
    if (a->table != nullptr) {
      p.num_sequences = a->num_sequences;
      p.device_sequences = {static_cast<const std::int64_t*>(a->table), static_cast<const std::int32_t*>(a->pages),
                            a->max_queries, a->max_keys};
      p.page_size = a->page_size;
    }
    p.rows_per_batch = a->queries;
    p.num_heads = a->heads;
    p.num_kv_heads = a->kv_heads;
    p.head_dim = a->head_dim;
    p.scale = static_cast<float>(a->scale);
    p.variant.causal = a->causal != 0;
    p.variant.window = a->window;
    p.variant.soft_cap = static_cast<float>(a->soft_cap);
    p.variant.sink = static_cast<const float*>(a->sink);
    fill(p.variant.bias, a->bias, a->bias_strides);
    p.dtype = static_cast<DType>(a->dtype);
    p.on_cpu = false;
    fill(p.query, a->query, a->query_strides);
    fill(p.key, a->key, a->key_strides);
    fill(p.value, a->value, a->value_strides);
    p.selection.num_rows = a->batch * a->queries;
    p.selection.num_heads = a->heads;
    p.selection.gates = static_cast<const float*>(a->gates);
    p.lse = static_cast<float*>(a->lse);
    p.stream = a->stream;
    const auto dense = [](auto& tensor, void* data, std::int64_t rows, std::int64_t heads, std::int64_t dim) {
      const std::int64_t strides[] = {rows * heads * dim, heads * dim, dim, 1};
      fill(tensor, data, strides);
    };
    require(backend().unsupported_reason(
        {.dtype = p.dtype, .on_cpu = false, .head_dim = p.head_dim, .backward = a->backward != 0, .attention = &p}));
    dense(p.out, a->out, a->queries, a->heads, a->head_dim);
    if (a->backward == 0) {
      backend().attention_forward(p);
      return;
    }
    fill(p.grad_out, a->grad_out, a->grad_out_strides);
    dense(p.grad_query, a->grad_query, a->queries, a->heads, a->head_dim);
    dense(p.grad_key, a->grad_key, a->keys, a->kv_heads, a->head_dim);
    dense(p.grad_value, a->grad_value, a->keys, a->kv_heads, a->head_dim);
    p.grad_gates = static_cast<float*>(a->grad_gates);
    const std::int64_t strides[] = {a->heads * a->queries * a->keys, a->queries * a->keys, a->keys};
    fill(p.grad_bias, static_cast<float*>(a->grad_bias), strides);
    backend().attention_backward(p);
  });
}

const char* probe_projection(const ProjectionArguments* a) {
  return told([&] {
    ProjectionParams p;
    p.selection.num_rows = a->num_rows;
    p.selection.num_heads = a->num_heads;
    p.selection.gates = static_cast<const float*>(a->gates);
    p.head_dim = a->head_dim;
    p.width = a->width;
    p.dtype = static_cast<DType>(a->dtype);
    p.on_cpu = false;
    p.stream = a->stream;
    fill(p.x, a->x, a->x_strides);
    fill(p.heads, a->heads, a->heads_strides);
    fill(p.weight, a->weight, a->weight_strides);
    fill(p.out, a->out, a->out_strides);
    p.bias = a->bias;
    require(backend().unsupported_reason(
        {.dtype = p.dtype, .on_cpu = false, .head_dim = p.head_dim, .kernel = Kernel::kProjection, .projection = &p}));
    const auto run = a->which == 0   ? backend().project_heads
                     : a->which == 1 ? backend().combine_heads
                                     : backend().weight_gradient;
    run(p);
  });
}
}
