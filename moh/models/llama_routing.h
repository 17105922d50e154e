// The router of one LLaMA layer as config.json's `moh` describes it, and changes of K after loading.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "moh/layers/routers/router.h"
#include "moh/models/llama_config.h"

namespace moh::models {

// Nothing for a layer whose router goes by number (no head_order in config.json).
std::optional<layers::ChoiceOrder> choice_order(const LlamaConfig& config, std::int64_t layer, at::Device device);
// What a layer's router has to know, as the configuration is now.
layers::RouterSetting router_setting(const LlamaConfig& config, std::int64_t layer,
                                     const layers::ChoiceOrder* order = nullptr);

// K of a model at run time. Both keep the shared heads.
//
// The same K in every layer; layers with fewer routed heads use all of them.
void set_top_k(LlamaConfig& config, std::int64_t top_k);
// A share of the heads over all layers. By threshold: the thresholds that gave it on calibration text. Else layers keep
// their proportions: between the share that config.json asks for and all heads (or the shared ones alone, downwards)
// every layer goes the same part of its way, in whole choices whose total is the share.
void set_activated_share(LlamaConfig& config, double activated);

}  // namespace moh::models
