#include "moh/layers/routers/linear.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cmath>

#include "moh/base/error.h"
#include "moh/layers/routers/linear_keys.h"
#include "moh/layers/routers/router.h"

namespace moh::layers {

using at::Tensor;

namespace {

at::ScalarType wide(const Tensor& tensor) { return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace

Tensor linear_scores(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::ScalarType type = wide(x);
  return at::linear(x.to(type), weight.to(type), bias.to(type));
}

ops::Routing route_linear(const Tensor& scores, const LinearChoice& choice) {
  const std::int64_t choices = scores.size(-1), num_routed = choices - choice.shared;
  MOH_CHECK(choice.shared >= 0 && num_routed >= 0, "[route_linear] shared heads must be in 0..", choices, ", got ",
            choice.shared);
  MOH_CHECK(choice.threshold || (choice.top_k >= 0 && choice.top_k <= num_routed && choice.shared + choice.top_k > 0),
            "[route_linear] top_k must be in 0..", num_routed, " and at least one head active, got ", choice.top_k);
  const Tensor routed = scores.narrow(-1, choice.shared, num_routed);
  const bool bounded = choice.threshold && std::isfinite(*choice.threshold);
  const Tensor weights = at::sigmoid(bounded ? routed - *choice.threshold : routed);

  ops::Routing routing;
  Tensor selected;
  if (choice.threshold) {
    selected = routed.detach().gt(*choice.threshold).to(routed.scalar_type());
    routing.indices =
        at::empty(routed.sizes(), routed.options().dtype(at::kLong).requires_grad(false)).narrow(-1, 0, 0);
    routing.probabilities = weights;
  } else {
    routing.indices = ops::select_top_k(routed.detach(), choice.top_k);
    selected = at::zeros_like(routed.detach()).scatter(-1, routing.indices, 1.0);
    routing.probabilities = at::softmax(routed, -1);
  }
  if (choice.all_of.defined()) selected = selected.masked_fill(choice.all_of, 1);
  // w - w is an exact zero that carries the straight-through gradient.
  const Tensor gates = choice.weighted ? selected * weights : selected + (weights - weights.detach());
  if (choice.shared == 0) {
    routing.gates = gates;
  } else {
    routing.gates = at::cat({at::ones_like(scores.detach().narrow(-1, 0, choice.shared)), gates}, -1);
  }
  return routing;
}

Tensor mean_heads(const Tensor& gates, const Tensor& weight, const Tensor& bias) {
  return at::linear((1 - gates).to(weight.scalar_type()), weight, bias);
}

namespace {

class LinearRouter final : public Router {
 public:
  explicit LinearRouter(const RouterTensors& tensor)
      : weight_(*tensor("wg.weight")),
        bias_(*tensor("wg.bias")),
        mean_(tensor("head_mean.weight")),
        mean_bias_(tensor("head_mean.bias")) {}

  double share(const RouterSetting& setting) const override {
    return by_threshold(*setting.own) ? setting.own->at("activated").get<double>() : Router::share(setting);
  }
  bool has_gradients_everywhere(const RouterSetting& setting) const override {
    return setting.straight_through == StraightThrough::kAll;
  }
  Tensor balance_loss(const RouterSetting& setting, const ops::Routing& routing) const override {
    return by_threshold(*setting.own) ? Tensor() : Router::balance_loss(setting, routing);
  }
  Tensor compensation(const RouterSetting& setting, const Tensor& gates) const override {
    if (!mean_) return {};
    Tensor by_choice = setting.group == 1 ? gates : gates.slice(-1, 0, std::nullopt, setting.group);
    // A head that was left out has no gradient of its own, the other half of what its gate's would be.
    if (!has_gradients_everywhere(setting)) by_choice = at::where(by_choice.ne(0), by_choice, by_choice.detach());
    return mean_heads(by_choice, *mean_, *mean_bias_);
  }

 protected:
  ops::Routing decide(const RouterSetting& setting, const Tensor& x, const Tensor& /*scored*/) const override {
    Tensor scores = linear_scores(x, weight_, bias_);
    if (setting.order != nullptr) scores = scores.index_select(-1, setting.order->order);
    LinearChoice choice{
        .shared = setting.shared, .top_k = setting.top_k, .weighted = setting.own->value("weighted", false)};
    if (by_threshold(*setting.own)) choice.threshold = layer_threshold(*setting.own, setting.layer);
    if (const std::int64_t leading = leading_tokens(*setting.own); leading > 0) {
      MOH_CHECK(setting.positions.defined(), "[route_linear] leading tokens need positions");
      choice.all_of = setting.positions.lt(leading).unsqueeze(-1);
    }
    ops::Routing routing = route_linear(scores, choice);
    if (setting.straight_through == StraightThrough::kNone) routing.gates = routing.gates.detach();
    return routing;
  }

 private:
  Tensor weight_, bias_;
  std::optional<Tensor> mean_, mean_bias_;
};

std::vector<RouterTensor> tensors(const RouterSetting& setting) {
  std::vector<RouterTensor> all = {{"wg.weight", {setting.choices, setting.hidden}},
                                   {"wg.bias", {setting.choices}, /*decays=*/false}};
  if (setting.own->value("mean_heads", false)) {
    all.push_back({"head_mean.weight", {setting.hidden, setting.choices}, /*decays=*/false});
    all.push_back({"head_mean.bias", {setting.hidden}, /*decays=*/false});
  }
  return all;
}

std::unique_ptr<Router> make(const RouterTensors& tensor) { return std::make_unique<LinearRouter>(tensor); }

const RegisterRouter registered({.name = "linear",
                                 .summary = "fitted or trained, a score of the layer's input for every head",
                                 .needs_query = false,
                                 .keys = linear_router_keys(),
                                 .tensors = tensors,
                                 .make = make,
                                 .check = check_linear_router_keys});

}  // namespace
}  // namespace moh::layers
