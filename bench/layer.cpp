// moh bench layer: a whole self-attention layer. Rivals: dense_twin, the same projections and fused attention with
// every head, by LibTorch's best operations, MKL's or oneDNN's products, whichever are faster here; authors_form, the
// dense twin with the router, every head computed and multiplied by its gate.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "bench/common.h"
#include "bench/reference.h"
#include "moh/layers/moh_layer.h"
#include "moh/models/llama_config.h"
#include "moh/ops/linear.h"
#include "moh/ops/projection.h"

namespace moh::bench {
namespace {

using at::Tensor;
constexpr const char* kGateForm = "authors";

struct Layer {
  Tensor x, grad;             // [B, T, C]
  Tensor qkv, out_weight;     // [(H + 2 Hkv) D, C], [C, H D]
  std::vector<Tensor> q_k_v;  // the same as qkv, apart, for whoever multiplies them apart
  std::optional<Tensor> wg, wg_1, wg_0;
  std::int64_t heads, kv_heads, head_dim, shared_heads, top_k;
  bool causal, by_norm;

  Tensor split(const Tensor& projected) const { return projected.unflatten(-1, {-1, head_dim}); }
  std::vector<Tensor> leaves() const {
    std::vector<Tensor> all = {x, out_weight, qkv, q_k_v[0], q_k_v[1], q_k_v[2]};
    for (const auto& weight : {wg, wg_1, wg_0}) {
      if (weight) all.push_back(*weight);
    }
    return all;
  }
  void clear_gradients() const {
    for (Tensor& leaf : leaves()) leaf.mutable_grad() = Tensor();
  }
  // Gradients of input, output projection, joint projection, router.
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> all = {
        x.grad(), out_weight.grad(),
        qkv.grad().defined() ? qkv.grad() : at::cat({q_k_v[0].grad(), q_k_v[1].grad(), q_k_v[2].grad()})};
    for (const auto& weight : {wg, wg_1, wg_0}) {
      if (weight) all.push_back(weight->grad());
    }
    return all;
  }
  // The same in another dtype.
  Layer to(at::ScalarType dtype) const {
    Layer copy = *this;
    const auto convert = [&](Tensor& tensor) { tensor = tensor.detach().to(dtype); };
    convert(copy.x);
    convert(copy.grad);
    convert(copy.qkv);
    for (Tensor& weight : copy.q_k_v) convert(weight);
    convert(copy.out_weight);
    for (auto* weight : {&copy.wg, &copy.wg_1, &copy.wg_0}) {
      if (*weight) convert(**weight);
    }
    return copy;
  }
};

Layer make_layer(const Case& c, std::uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto random = [&](std::vector<std::int64_t> sizes, double deviation) {
    return at::empty(sizes, at::TensorOptions(at::kFloat)).normal_(0, deviation, generator).to(type_of(c.dtype));
  };
  const auto moh = models::make_moh_config(1, c.heads, c.activated, std::nullopt, std::nullopt, c.router);
  Layer layer;
  layer.heads = c.heads;
  layer.kv_heads = c.kv_heads;
  layer.head_dim = c.head_dim;
  layer.shared_heads = moh.shared_heads[0];
  layer.top_k = moh.top_k[0];
  layer.causal = c.is_causal();
  layer.by_norm = c.router == "norm";
  const double deviation = 1.0 / std::sqrt(static_cast<double>(c.hidden));
  layer.x = random({c.batch, c.tokens, c.hidden}, 1);
  layer.grad = random({c.batch, c.tokens, c.hidden}, 1);
  layer.qkv = random({(c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden}, deviation);
  for (const Tensor& part :
       layer.qkv.split_with_sizes({c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim})) {
    layer.q_k_v.push_back(part.clone());
  }
  layer.out_weight = random({c.hidden, c.heads * c.head_dim}, deviation);
  if (!layer.by_norm) {  // the matrices that each case needs: paper, section 3.3
    if (layer.top_k > 0) layer.wg = random({c.heads - layer.shared_heads, c.hidden}, deviation);
    if (layer.shared_heads > 1) layer.wg_1 = random({layer.shared_heads, c.hidden}, deviation);
    if (layer.top_k > 0 && layer.shared_heads > 0) layer.wg_0 = random({2, c.hidden}, deviation);
  }
  return layer;
}

ops::Routing route(const Layer& layer, const Tensor& query) {
  return layer.by_norm ? ops::route_query_norm(query, layer.shared_heads, layer.top_k)
                       : ops::route_two_stage(layer.x, layer.wg, layer.wg_1, layer.wg_0, layer.heads,
                                              layer.shared_heads, layer.top_k, kGateForm);
}

struct Output {
  Tensor y, gates;
};

// As DiT has the layer where heads have keys of their own, as LLaMA does elsewhere.
Output moh_forward(const Layer& layer) {
  const auto router = layers::make_router(layer.by_norm ? "norm" : "two-stage", [&](const std::string& name) {
    return name == "wg.weight" ? layer.wg : name == "wg_1.weight" ? layer.wg_1 : layer.wg_0;
  });
  layers::RouterSetting setting;
  setting.hidden = layer.x.size(2);
  setting.choices = layer.heads;
  setting.shared = layer.shared_heads;
  setting.top_k = layer.top_k;
  layers::parse_name(kGateForm, setting.gates, "bench", "gates");
  layers::MohLayer moh;
  moh.num_heads = layer.heads;
  moh.num_kv_heads = layer.kv_heads;
  if (!layer.by_norm && layer.heads == layer.kv_heads) {
    moh.in = layers::Projections::of_joint(layers::Linear(layer.qkv), layer.heads * layer.head_dim);
  } else {
    const auto plain = [](const Tensor& weight) {
      return layers::Linear(weight, std::nullopt, layers::Product::kPlain);
    };
    moh.in.query = layer.by_norm ? plain(layer.q_k_v[0]) : layers::Linear(layer.q_k_v[0]);
    moh.in.key = plain(layer.q_k_v[1]);
    moh.in.value = plain(layer.q_k_v[2]);
  }
  moh.out = layers::Linear(layer.out_weight);
  moh.router = router.get();
  const auto output = layers::moh_layer(
      moh, setting, layer.x, {}, [&](const layers::ProjectedHeads& heads, const layers::Gates& gates) {
        return layers::attend_to(heads.query, heads.key, heads.value, gates, {.causal = layer.causal});
      });
  return {output.y, output.routing.gates};
}

struct DenseForm {
  bool fused_projection, contiguous, onednn;  // onednn: products as moh's own, instead of at::linear (MKL in fp32)
  std::string name() const {
    return std::string(fused_projection ? "one projection" : "three projections") +
           (contiguous ? ", [B, H, T, D] copied" : ", [B, T, H, D] transposed") + (onednn ? ", oneDNN" : "");
  }
  Tensor linear(const Tensor& x, const Tensor& weight) const {
    return onednn ? ops::linear(x, weight, std::nullopt) : at::linear(x, weight);
  }
};

// Every head; `gated` multiplies by the router's gates. `mask`: 1 where a gate counts, undefined for all. `as_routed`:
// the query whose values the router sees, undefined for this one's own: in bf16 rounding decides between near equals.
Tensor dense_forward(const Layer& layer, const DenseForm& form, bool gated, const Tensor& mask = {},
                     const Tensor& as_routed = {}) {
  std::vector<Tensor> parts;
  if (form.fused_projection) {
    parts =
        layer.split(form.linear(layer.x, layer.qkv)).split_with_sizes({layer.heads, layer.kv_heads, layer.kv_heads}, 2);
  } else {
    for (const Tensor& weight : layer.q_k_v) parts.push_back(layer.split(form.linear(layer.x, weight)));
  }
  const auto as_sdpa = [&](const Tensor& tensor) {
    const Tensor heads_first = tensor.transpose(1, 2);
    return form.contiguous ? heads_first.contiguous() : heads_first;
  };
  Tensor heads = at::scaled_dot_product_attention(as_sdpa(parts[0]), as_sdpa(parts[1]), as_sdpa(parts[2]), {}, 0.0,
                                                  layer.causal, {}, layer.heads != layer.kv_heads)
                     .transpose(1, 2);
  if (gated) {
    Tensor query = parts[0];
    if (as_routed.defined()) query = query + (as_routed.to(query.scalar_type()) - query).detach();
    Tensor gates = route(layer, query).gates;
    if (mask.defined()) gates = gates * mask;
    heads = heads * gates.unsqueeze(-1).to(heads.scalar_type());
  }
  return form.linear(heads.flatten(2), layer.out_weight);
}

void set_requires_grad(const Layer& layer, bool value) {
  for (Tensor& leaf : layer.leaves()) leaf.set_requires_grad(value);
}

// Against the authors' form in fp32 by LibTorch: the same choice of heads, every head computed.
double check(const Case& c, const Layer& layer) {
  const c10::AutoGradMode mode(c.has_backward());
  const Layer wide = layer.to(at::kFloat);
  for (const Layer& each : {layer, wide}) set_requires_grad(each, c.has_backward());
  const Output result = moh_forward(layer);
  const Tensor mask = result.gates.detach().ne(0).to(at::kFloat);
  const Tensor query = layer.split(at::linear(layer.x, layer.q_k_v[0])).detach();
  const Tensor expected = dense_forward(wide, {true, true, false}, /*gated=*/true, mask, query);
  const double tolerance = tolerance_of(type_of(c.dtype));
  double worst = check_close(result.y, expected, tolerance, "moh's layer");
  if (c.has_backward()) {
    result.y.backward(layer.grad);
    expected.backward(wide.grad);
    const auto ours = layer.gradients(), theirs = wide.gradients();
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const std::string what = i == 0 ? "the layer's input" : i == 1 ? "W_O" : i == 2 ? "W_Q, W_K, W_V" : "the router";
      worst = std::max(worst, check_close(ours[i], theirs[i], tolerance, "moh's gradient of " + what));
    }
    layer.clear_gradients();
  }
  return worst;
}

// Projections, attention, router: what the active heads need.
std::vector<Work> work_of(const Case& c, const Layer& layer, const Tensor& gates, bool routed) {
  const auto bytes = static_cast<double>(at::elementSize(type_of(c.dtype)));
  const auto tokens = static_cast<double>(c.batch * c.tokens), hidden = static_cast<double>(c.hidden);
  const auto dim = static_cast<double>(c.head_dim);
  const AttentionWork attention = attention_work(gates, c.tokens, c.kv_heads, c.head_dim, c.is_causal(), bytes);
  const double mean_active = attention.active_rows / tokens;
  const double query_heads = layer.by_norm ? static_cast<double>(c.heads) : mean_active;
  std::vector<Work> products = {matrix_product(tokens, hidden, query_heads * dim, bytes),
                                matrix_product(tokens, hidden, 2 * static_cast<double>(c.kv_heads) * dim, bytes),
                                matrix_product(tokens, mean_active * dim, hidden, bytes)};
  if (routed && !layer.by_norm) {
    products.push_back(matrix_product(tokens, hidden, static_cast<double>(c.heads + 2), bytes));
  }
  if (c.has_backward()) {
    for (Work& product : products) product = with_gradients(product);
    products.push_back(attention_backward(attention));
  }
  products.push_back(attention_forward(attention));
  return products;
}

}  // namespace

Row run_layer(const Case& c, const Options& options) {
  const Layer layer = make_layer(c, options.seed);
  Measured measured;
  measured.max_abs_error = check(c, layer);

  const c10::AutoGradMode mode(c.has_backward());
  const auto side = [&](auto forward) -> std::function<void()> {
    if (!c.has_backward()) return [forward] { forward(); };
    return [&layer, forward] {
      forward().backward(layer.grad);
      layer.clear_gradients();
    };
  };
  const bool authors = c.rival == "authors_form";
  std::vector<Form> forms;
  for (const bool fused : {true, false}) {
    for (const bool contiguous : {true, false}) {
      for (const bool onednn : {true, false}) {
        if (onednn && c.dtype != "fp32") continue;  // moh takes at::linear there too
        const DenseForm form{fused, contiguous, onednn};
        forms.push_back({form.name(), side([&layer, form, authors] { return dense_forward(layer, form, authors); })});
      }
    }
  }
  const Form& rival = fastest(forms);
  measured.rival_form = rival.name;
  measured.timing = time_pair(side([&] { return moh_forward(layer).y; }), rival.run, options.seconds, options.pairs);

  const c10::NoGradGuard no_grad;
  const Tensor gates = moh_forward(layer).gates;
  measured.activated = active_share(gates);
  measured.work = work_of(c, layer, gates, /*routed=*/true);
  measured.rival_work = work_of(c, layer, at::ones_like(gates), authors);
  const Tensor query = layer.split(at::linear(layer.x, layer.q_k_v[0]));
  const double router_ms = best_ms([&] { route(layer, query); }, 0);
  Row row = make_row("layer", c, options, measured);
  row["hidden"] = c.hidden;
  row["router"] = c.router;
  row["shared_heads"] = layer.shared_heads;
  row["top_k"] = layer.top_k;
  const bool skips = ops::skips_heads(layer.x, layer.head_dim, measured.activated);
  row["projections"] = std::string(skips ? "skip heads" : "dense");  // of queries and output, forward
  row["router_ms"] = router_ms;                                      // forward alone
  row["router_share"] = router_ms / measured.timing.moh_ms;
  return row;
}

}  // namespace moh::bench
