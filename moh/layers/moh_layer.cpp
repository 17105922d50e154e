#include "moh/layers/moh_layer.h"

#include <ATen/ATen.h>

#include "moh/ops/projection.h"

namespace moh::layers {

using at::Tensor;

Projections Projections::of_joint(const Linear& joint, std::int64_t query_rows, bool as_one) {
  Projections all;
  all.query = joint.rows(0, query_rows);
  all.key_value = joint.rows(query_rows, joint.outputs() - query_rows);
  if (as_one) all.joint = joint;
  return all;
}

Tensor attend_to(const Tensor& query, const Tensor& key, const Tensor& value, const Gates& gates,
                 const ops::AttentionVariant& variant) {
  if (gates.every_gradient) {
    return ops::head_attention_composite(query, key, value, gates.selection.gates, variant);
  }
  return ops::head_attention(query, key, value, gates.selection, variant);
}

MohLayerOutput moh_layer(const MohLayer& layer, const RouterSetting& setting, const Tensor& x,
                         const MohLayerWishes& wishes, const Attend& attend) {
  const auto split = [&](const Tensor& rows, std::int64_t count) {
    return rows.reshape({x.size(0), x.size(1), count, -1});
  };
  const Router* const router = layer.router;
  MohLayerOutput output;
  const bool from_input = router != nullptr && !router->needs_query();
  Gates gates;
  const auto route = [&](const Tensor& query) {
    output.routing = router->route(setting, x, query);
    gates.selection = ops::select_heads(output.routing.gates);
  };
  if (from_input) route({});

  const double share = router != nullptr ? router->share(setting) : 1;
  const std::int64_t head_dim = layer.out.inputs() / layer.num_heads;
  // Attention neither reads the queries of heads that were not selected nor leaves anything but zeros for them, so that
  // the products before and after it may compute all heads where that is faster.
  const bool skips = router != nullptr && ops::skips_heads(x, head_dim, share);
  ProjectedHeads heads;
  if (layer.in.joint.defined() && share == 1) {
    const auto parts = split(layer.in.joint(x), layer.num_heads + 2 * layer.num_kv_heads)
                           .split_with_sizes({layer.num_heads, layer.num_kv_heads, layer.num_kv_heads}, 2);
    heads = {parts[0], parts[1], parts[2]};
  } else {
    heads.query = skips && from_input && !layer.every_query ? layer.in.query.project(x, gates.selection)
                                                            : split(layer.in.query(x), layer.num_heads);
    if (layer.in.key_value.defined()) {
      // Its gradient is put together once; those of two selections would be added up, zeros and all.
      const auto parts = layer.in.key_value(x).reshape({x.size(0), x.size(1), 2, layer.num_kv_heads, -1}).unbind(2);
      heads.key = parts[0];
      heads.value = parts[1];
    } else {
      heads.key = split(layer.in.key(x), layer.num_kv_heads);
      heads.value = split(layer.in.value(x), layer.num_kv_heads);
    }
  }
  if (wishes.keep_query) output.query = heads.query;
  if (router == nullptr) {
    gates.selection.gates =
        at::ones({x.size(0), x.size(1), layer.num_heads},
                 x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).requires_grad(false));
    output.y = layer.out(attend(std::move(heads), gates).flatten(2));
    return output;
  }
  if (!from_input) route(heads.query);
  if (wishes.leaf_gates) output.routing.gates = output.routing.gates.detach().set_requires_grad(true);
  gates.selection = gates.selection.with_gates(output.routing.gates);
  gates.every_gradient = output.routing.gates.requires_grad() && router->has_gradients_everywhere(setting);
  const Tensor attended = attend(std::move(heads), gates);
  output.y =
      skips && !gates.every_gradient ? layer.out.combine(attended, gates.selection) : layer.out(attended.flatten(2));
  if (const Tensor others = router->compensation(setting, output.routing.gates); others.defined()) {
    output.y = output.y + others.to(output.y.scalar_type());
  }
  if (wishes.balance_loss) output.load_balance_loss = router->balance_loss(setting, output.routing);
  return output;
}

}  // namespace moh::layers
