// Active heads by layer, `activated` of all heads over all layers: of all ways to spend them the one that loses least,
// the losses of the layers added up. The paper gives every layer the same number.
#pragma once

#include <functional>
#include <vector>

#include "moh/convert/importance.h"

namespace moh::convert {

// loss[layer][n]: with n choices in use; n = 0 is never taken. Choices of every layer, at least one in each. Exact.
std::vector<std::int64_t> spend(const std::vector<std::vector<double>>& loss, double activated);

// Shared heads for a number of active ones; K is the rest.
using Division = std::function<std::int64_t(std::int64_t active)>;

// By scores: what the norm router of `config` leaves out, by importance, no further pass over the text. Overwrites
// shared_heads and top_k.
void budget_by_scores(models::LlamaConfig& config, double activated, const Division& division,
                      const HeadStatistics& statistics);

// By measurement: the loss on the text for every layer and number of heads with the other layers dense, layers x heads
// passes. `model` holds the converted configuration, its order of heads included; its shared_heads and top_k are
// overwritten. `progress` hears of the share done.
void budget_by_measurement(models::Llama& model, double activated, const Division& division,
                           const Calibration& calibration, const std::function<void(double)>& progress = {});

}  // namespace moh::convert
