// What the object `moh` of a config says for the linear router alone, known without torch.
//
//   choose      "top-k", or "threshold": the number of heads varies by token and layer; top_k is absent then
//   activated   by threshold: the share of all heads over all layers that calibration text used
//   thresholds  by threshold, per layer: what gives the shares 0, 1 / n, 2 / n, ... 1 on calibration text; those of
//               `activated` are interpolated
//   weighted    see above; default false
//   leading_tokens  how many tokens at the beginning of a sequence use all heads; default 0
//   mean_heads  whether there are m_i and c: tensors head_mean.weight [C, choices] and head_mean.bias [C]; default
//   false
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moh/base/fields.h"

namespace moh::layers {

std::vector<std::string> linear_router_keys();
// Error "[where] `moh.KEY` ..." for a model of so many layers.
void check_linear_router_keys(const Json& own, std::int64_t layers, const std::string& where);

// Whether a threshold decides, and a layer's for `activated`; minus infinity at 1.
bool by_threshold(const Json& own);
double layer_threshold(const Json& own, std::int64_t layer);
std::int64_t leading_tokens(const Json& own);

}  // namespace moh::layers
