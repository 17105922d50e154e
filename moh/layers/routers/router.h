// Routers: which heads a token uses and with what gates. One file each in this folder, which registers itself:
//
//   const RegisterRouter registered({.name = "mine", .summary = "...", .needs_query = false, .tensors = ..., .make =
//   ...});
//
// A router decides over choices: heads, or groups of heads that are taken together, in an order in which the shared
// ones come first. What the heads' numbers are is settled here, for every router alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moh/layers/routers/router_kind.h"
#include "moh/ops/routing.h"

namespace moh::layers {

// The choices of a layer in the router's order, and where each stands in it.
struct ChoiceOrder {
  at::Tensor order, place;  // int64
};

// One layer's, as its configuration says at this moment: counts may change between calls.
struct RouterSetting {
  std::int64_t hidden = 0;                          // C of the layer's input
  std::int64_t choices = 1, shared = 1, top_k = 0;  // of `group` heads each
  std::int64_t group = 1;                           // heads that are chosen together
  SelectBy select = SelectBy::kHead;
  GateForm gates = GateForm::kPaper;    // of a trained router
  GateForm balance = GateForm::kPaper;  // scale of the load-balance loss
  StraightThrough straight_through = StraightThrough::kSelected;
  bool two_stage = true;               // false: shared and routed heads are not weighed against each other
  const ChoiceOrder* order = nullptr;  // as they are numbered
  std::int64_t layer = 0;              // its number, where keys of its own are per layer
  const Json* own = nullptr;           // keys of the object `moh` that are this router's alone
  at::Tensor positions = {};  // [T] or [B, T] int64 of the tokens in their sequences, where the model knows them

  std::int64_t routed() const { return choices - shared; }
};

class Router {
 public:
  virtual ~Router() = default;

  // Whether it decides from the queries of all heads; else from x alone, before any query is computed.
  bool needs_query() const;
  // x [B, T, C], the layer's input; query [B, T, H, D] as projected, undefined unless the kind needs it. The gates
  // [B, T, H] are those of the heads as numbered; indices and probabilities count choices in the router's order.
  ops::Routing route(const RouterSetting& setting, const at::Tensor& x, const at::Tensor& query) const;

  // Share of the heads that a token uses, as far as the setting tells: whether skipping pays is judged by it.
  virtual double share(const RouterSetting& setting) const;
  // Whether gates of heads that were not selected have gradients, for which every head must be computed.
  virtual bool has_gradients_everywhere(const RouterSetting&) const { return false; }
  // A scalar; undefined: nothing to balance.
  virtual at::Tensor balance_loss(const RouterSetting& setting, const ops::Routing& routing) const;
  // [B, T, C] that stands in for the heads that were not selected, added to the layer's output; undefined: nothing.
  virtual at::Tensor compensation(const RouterSetting&, const at::Tensor& /*gates*/) const { return {}; }

 protected:
  // Gates [B, T, choices] in the router's order. `scored`: the queries of every choice as one vector, in that order.
  virtual ops::Routing decide(const RouterSetting& setting, const at::Tensor& x, const at::Tensor& scored) const = 0;

 private:
  friend std::unique_ptr<Router> make_router(RouterKind kind, const RouterTensors& tensors);
  const RouterType* type_ = nullptr;
};

std::unique_ptr<Router> make_router(RouterKind kind, const RouterTensors& tensors);
// A layer's tensors in the order of their names, which is that of the authors' ViT and DiT checkpoints.
std::vector<RouterTensor> router_tensors_by_name(RouterKind kind, const RouterSetting& setting);

}  // namespace moh::layers
