// The Mixture-of-Head attention layer (paper, section 3), once for all models:
//
//   route     gates g of every token and head, from the layer's input or from its queries
//   project   queries of the selected heads, keys and values of all
//   attend    what differs between models: positions, caches, norms, windows; heads come back times their gates
//   combine   y = sum over the selected heads of W_h heads_h + b (section 3.1), and what the router puts in the others'
//   place
//
// A dense layer is one without a router: every gate is 1.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "moh/layers/linear.h"
#include "moh/layers/routers/router.h"
#include "moh/ops/head_attention.h"

namespace moh::layers {

struct Projections {
  Linear query;       // [H D, C]
  Linear key, value;  // [Hkv D, C] each, or
  Linear key_value;   // [2 Hkv D, C] as one product, rows (k, v) x head x D
  Linear joint;       // [(H + 2 Hkv) D, C], whose rows the others are: used where no head is skipped. May be undefined

  // Rows (q, k, v) x head x D. `as_one`: one product where nothing is skipped.
  static Projections of_joint(const Linear& joint, std::int64_t query_rows, bool as_one = true);
};

// What attention gets: [B, T, heads, D] each.
struct ProjectedHeads {
  at::Tensor query;  // nothing of use where a head was not selected
  at::Tensor key, value;
};

struct Gates {
  ops::Selection selection;     // [B, T, H]
  bool every_gradient = false;  // of the gates, also where they are zero: attention must compute every head
};

// The heads' outputs [B, T, H, D], each times its gate; zero where that is zero.
using Attend = std::function<at::Tensor(ProjectedHeads, const Gates&)>;
// Attention of the queries to the keys: ops::head_attention, or its composite form for every gradient.
at::Tensor attend_to(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const Gates& gates,
                     const ops::AttentionVariant& variant);

struct MohLayer {
  std::int64_t num_heads = 1, num_kv_heads = 1;
  Projections in;
  Linear out;                      // [C, H D]
  const Router* router = nullptr;  // nullptr: dense
  bool every_query = false;        // attention wants the queries of unselected heads too
};

struct MohLayerWishes {
  bool balance_loss = false;
  bool leaf_gates = false;  // gates are leaves: their gradient is theirs alone, not the router's
  bool keep_query = false;
};

struct MohLayerOutput {
  at::Tensor y;                  // [B, T, C]
  ops::Routing routing;          // undefined in a dense layer
  at::Tensor query;              // as projected, if wished for
  at::Tensor load_balance_loss;  // a scalar, if wished for and if the layer routes
};

// x [B, T, C]. `setting`: of the router, as it is now.
MohLayerOutput moh_layer(const MohLayer& layer, const RouterSetting& setting, const at::Tensor& x,
                         const MohLayerWishes& wishes, const Attend& attend);

}  // namespace moh::layers
