#include "moh/layers/moh_attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "moh/base/error.h"
#include "moh/ops/head_attention.h"
#include "moh/ops/linear.h"
#include "moh/ops/projection.h"

namespace moh::layers {

using at::Tensor;
using std::optional;

MohAttentionOutput moh_attention(const Tensor& x, const MohAttentionWeights& weights,
                                 const MohAttentionOptions& options) {
  MOH_CHECK(x.dim() == 3, "[moh_attention] x must be [B, T, C], got ", x.sizes());
  const std::int64_t rows = weights.qkv_weight.size(0);
  MOH_CHECK(options.num_heads > 0 && rows % (3 * options.num_heads) == 0, "[moh_attention] the ", rows,
            " rows of qkv_weight must be 3 * num_heads * head size, with ", options.num_heads, " heads");
  const std::int64_t head_dim = rows / (3 * options.num_heads);

  MohAttentionOutput output;
  const std::int64_t active = options.shared_heads + options.top_k, size = options.num_heads * head_dim;
  const auto split = [&](const Tensor& projected, std::int64_t parts) {
    return projected.reshape({x.size(0), x.size(1), parts, options.num_heads, head_dim});
  };
  if (options.form == "none") {
    MOH_CHECK(options.shared_heads == options.num_heads && options.top_k == 0,
              "[moh_attention] form `none` is a dense layer: every head is shared, top_k is 0");
    output.routing.gates = at::ones({x.size(0), x.size(1), options.num_heads}, x.options().requires_grad(false));
  } else {
    output.routing = ops::route_two_stage(x, weights.wg, weights.wg_1, weights.wg_0, options.num_heads,
                                          options.shared_heads, options.top_k, options.form);
  }
  const Tensor& gates = output.routing.gates;
  if (active == options.num_heads) {  // nothing to skip: one product for all
    const Tensor qkv = split(ops::linear(x, weights.qkv_weight, weights.qkv_bias), 3);
    const Tensor heads =
        ops::head_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), gates, std::nullopt, options.causal);
    output.y = ops::linear(heads.flatten(2), weights.proj_weight, weights.proj_bias);
  } else {  // queries of unselected heads are not computed; keys and values serve every token
    const auto part = [&](std::int64_t begin, std::int64_t length) -> optional<Tensor> {
      if (!weights.qkv_bias) return std::nullopt;
      return weights.qkv_bias->narrow(0, begin, length);
    };
    const Tensor query = ops::project_heads(x, weights.qkv_weight.narrow(0, 0, size), part(0, size), gates);
    const Tensor key_value =
        split(ops::linear(x, weights.qkv_weight.narrow(0, size, 2 * size), part(size, 2 * size)), 2);
    const Tensor heads =
        ops::head_attention(query, key_value.select(2, 0), key_value.select(2, 1), gates, std::nullopt, options.causal);
    output.y = ops::combine_heads(heads, weights.proj_weight, weights.proj_bias, gates);
  }
  if (options.top_k > 0) {
    output.load_balance_loss =
        ops::load_balance_loss(output.routing.probabilities, output.routing.indices, options.form);
  }
  return output;
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
        const auto output = moh_attention(x, {qkv_weight, qkv_bias, proj_weight, proj_bias, wg, wg_1, wg_0},
                                          {num_heads, shared_heads, top_k, form, causal});
        const Tensor loss = output.load_balance_loss.defined() ? output.load_balance_loss
                                                               : at::zeros({}, output.routing.gates.options());
        return std::tuple<Tensor, Tensor, Tensor>(output.y, output.routing.gates, loss);
      });
}

}  // namespace moh::layers
