// The parameter-free router of MoH-LLaMA (paper, section 3.4): heads with the longest queries, gates 0 or 1. A group's
// query is the queries of its heads as one vector, so its norm is the root of the sum of their squared norms, and a
// group of one head is the paper's router.
#include <ATen/ATen.h>

#include "moh/layers/routers/router.h"

namespace moh::layers {
namespace {

using at::Tensor;

class QueryNorm final : public Router {
 public:
  bool has_gradients_everywhere(const RouterSetting& setting) const override {
    return setting.straight_through == StraightThrough::kAll;
  }

 protected:
  ops::Routing decide(const RouterSetting& setting, const Tensor& /*x*/, const Tensor& scored) const override {
    // Two norms always differ by the same multiple of their standard deviation.
    const bool few_groups = setting.select == SelectBy::kKvGroup && setting.routed() <= 2;
    auto routing = ops::route_query_norm(scored, setting.shared, setting.top_k, few_groups ? "mean" : "deviation");
    if (setting.straight_through == StraightThrough::kNone) routing.gates = routing.gates.detach();
    return routing;
  }
};

std::vector<RouterTensor> tensors(const RouterSetting&) { return {}; }
std::unique_ptr<Router> make(const RouterTensors&) { return std::make_unique<QueryNorm>(); }

const RegisterRouter registered({.name = "norm",
                                 .summary = "parameter-free, by query norm",
                                 .needs_query = true,
                                 .tensors = tensors,
                                 .make = make});

}  // namespace
}  // namespace moh::layers
