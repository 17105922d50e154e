// The trained router (paper, section 3.2): a softmax over the shared heads, one over the routed heads, and one that
// weighs the two kinds. It sees the layer's input alone, so that queries of unselected heads are never computed.
#include <ATen/ATen.h>

#include "moh/layers/routers/router.h"

namespace moh::layers {
namespace {

using at::Tensor;

class TwoStage final : public Router {
 public:
  explicit TwoStage(const RouterTensors& tensor)
      : wg_(tensor("wg.weight")), wg_1_(tensor("wg_1.weight")), wg_0_(tensor("wg_0.weight")) {}

 protected:
  ops::Routing decide(const RouterSetting& setting, const Tensor& x, const Tensor& /*scored*/) const override {
    std::optional<Tensor> kind = wg_0_;
    // Equal scores weigh both kinds 1, as if there were no second stage.
    if (!setting.two_stage) kind = at::zeros({2, x.size(-1)}, x.options().requires_grad(false));
    return ops::route_two_stage(x, wg_, wg_1_, kind, setting.choices, setting.shared, setting.top_k,
                                name_of(setting.gates));
  }

 private:
  std::optional<Tensor> wg_, wg_1_, wg_0_;
};

// The matrices that each case needs: spec, section 1.
std::vector<RouterTensor> tensors(const RouterSetting& setting) {
  std::vector<RouterTensor> all;
  if (setting.top_k > 0) all.push_back({"wg.weight", {setting.routed(), setting.hidden}});
  if (setting.shared > 1) all.push_back({"wg_1.weight", {setting.shared, setting.hidden}});
  if (setting.shared > 0 && setting.top_k > 0 && setting.two_stage) all.push_back({"wg_0.weight", {2, setting.hidden}});
  return all;
}

std::unique_ptr<Router> make(const RouterTensors& tensor) { return std::make_unique<TwoStage>(tensor); }

const RegisterRouter registered(
    {.name = "two-stage", .summary = "trained", .needs_query = false, .tensors = tensors, .make = make});

}  // namespace
}  // namespace moh::layers
