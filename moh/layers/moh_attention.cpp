#include "moh/layers/moh_attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "moh/base/error.h"

namespace moh::layers {

using at::Tensor;
using std::optional;

MohLayerOutput moh_attention(const Tensor& x, const MohAttentionWeights& weights, const MohAttentionOptions& options) {
  MOH_CHECK(x.dim() == 3, "[moh_attention] x must be [B, T, C], got ", x.sizes());
  const std::int64_t rows = weights.qkv.outputs();
  MOH_CHECK(options.num_heads > 0 && rows % (3 * options.num_heads) == 0, "[moh_attention] the ", rows,
            " rows of qkv_weight must be 3 * num_heads * head size, with ", options.num_heads, " heads");
  MOH_CHECK(!options.dense || (options.shared_heads == options.num_heads && options.top_k == 0),
            "[moh_attention] form `none` is a dense layer: every head is shared, top_k is 0");
  std::unique_ptr<Router> router;
  if (!options.dense) {
    router = make_router("two-stage", [&](const std::string& name) {
      return name == "wg.weight" ? weights.wg : name == "wg_1.weight" ? weights.wg_1 : weights.wg_0;
    });
  }
  RouterSetting setting;
  setting.hidden = x.size(2);
  setting.choices = options.num_heads;
  setting.shared = options.shared_heads;
  setting.top_k = options.top_k;
  setting.gates = setting.balance = options.form;
  MohLayer layer;
  layer.num_heads = layer.num_kv_heads = options.num_heads;
  layer.in = Projections::of_joint(weights.qkv, rows / 3);
  layer.out = weights.proj;
  layer.router = router.get();
  return moh_layer(layer, setting, x, {.balance_loss = true}, [&](const ProjectedHeads& heads, const Gates& gates) {
    return attend_to(heads.query, heads.key, heads.value, gates, {.causal = options.causal});
  });
}

TORCH_LIBRARY_FRAGMENT(moh, m) {
  m.def(
      "moh_attention(Tensor x, Tensor qkv_weight, Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias, Tensor? wg, "
      "Tensor? wg_1, Tensor? wg_0, *, int num_heads, int shared_heads, int top_k, str form='authors', bool "
      "causal=False) -> (Tensor y, Tensor gates, Tensor load_balance_loss)",
      [](const Tensor& x, const Tensor& qkv_weight, const optional<Tensor>& qkv_bias, const Tensor& proj_weight,
         const optional<Tensor>& proj_bias, const optional<Tensor>& wg, const optional<Tensor>& wg_1,
         const optional<Tensor>& wg_0, std::int64_t num_heads, std::int64_t shared_heads, std::int64_t top_k,
         std::string form, bool causal) {
        MohAttentionOptions options{num_heads, shared_heads, top_k};
        options.causal = causal;
        options.dense = form == "none";
        if (!options.dense) parse_name(form, options.form, "moh_attention", "form");
        const auto output =
            moh_attention(x, {Linear(qkv_weight, qkv_bias), Linear(proj_weight, proj_bias), wg, wg_1, wg_0}, options);
        const Tensor gates = options.dense
                                 ? at::ones({x.size(0), x.size(1), num_heads}, x.options().requires_grad(false))
                                 : output.routing.gates;
        const Tensor loss =
            output.load_balance_loss.defined() ? output.load_balance_loss : at::zeros({}, gates.options());
        return std::tuple<Tensor, Tensor, Tensor>(output.y, gates, loss);
      });
}

}  // namespace moh::layers
