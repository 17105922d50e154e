#include "moh/layers/routers/router.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "moh/base/error.h"

namespace moh::layers {

using at::Tensor;

std::unique_ptr<Router> make_router(RouterKind kind, const RouterTensors& tensors) {
  std::unique_ptr<Router> router = kind->make(tensors);
  router->type_ = kind.operator->();
  return router;
}

std::vector<RouterTensor> router_tensors_by_name(RouterKind kind, const RouterSetting& setting) {
  std::vector<RouterTensor> tensors = kind->tensors(setting);
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return tensors;
}

bool Router::needs_query() const { return type_->needs_query; }

ops::Routing Router::route(const RouterSetting& setting, const Tensor& x, const Tensor& query) const {
  Tensor scored = query;
  if (query.defined() && setting.group > 1) {
    scored = query.reshape({query.size(0), query.size(1), setting.choices, -1});
  }
  if (query.defined() && setting.order != nullptr) scored = scored.index_select(2, setting.order->order);
  ops::Routing routing = decide(setting, x, scored);
  if (setting.order != nullptr) routing.gates = routing.gates.index_select(-1, setting.order->place);
  if (setting.group > 1) {
    auto sizes = routing.gates.sizes().vec();
    sizes.back() = setting.choices * setting.group;
    routing.gates = routing.gates.unsqueeze(-1).expand({-1, -1, -1, setting.group}).reshape(sizes);
  }
  return routing;
}

double Router::share(const RouterSetting& setting) const {
  return static_cast<double>(setting.shared + setting.top_k) / static_cast<double>(setting.choices);
}

Tensor Router::balance_loss(const RouterSetting& setting, const ops::Routing& routing) const {
  if (setting.top_k == 0) return {};
  return ops::load_balance_loss(routing.probabilities, routing.indices, name_of(setting.balance));
}

}  // namespace moh::layers
