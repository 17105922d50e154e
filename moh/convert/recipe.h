// Recipe "best": a dense model becomes one whose linear routers know what every head is worth for a token, without
// training (docs/conversion.md). Passes over calibration text:
//
//   1. forward and back, some windows: what the loss loses when a layer's attention moves (loss_metric.h)
//   2. forward, the same windows: a first router for each layer, a regression of what a head costs by itself on the
//      layer's input (router_fit.h); a threshold for all layers, or numbers of heads per layer, follow (selection.h)
//   3. forward, all windows: routers anew, from what a head costs among those that were taken beside it; thresholds or
//      numbers anew (weighted gates keep the routers of pass 2)
//   4. forward, layer by layer on the stream of the model converted so far: thresholds anew, which keep each layer's
//      share, and the output projection refitted (refit.h)
//
// Beside the weights in fp32, memory holds one layer's statistics, every layer's metric [C, C] and the hidden states of
// the text.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "moh/convert/calibration.h"
#include "moh/models/llama.h"

namespace moh::convert {

struct RecipeOptions {
  double activated = 0.75;
  std::string select = "head";       // or "kv-group"
  std::string choose = "threshold";  // or "top-k": numbers of heads by layer
  std::string budget = "global";     // with top-k: "global", layers differ, or "uniform"
  bool weighted = false;             // gates by score instead of ones
  bool mean_heads = true, refit = true;
  std::int64_t leading_tokens = 0;  // at the beginning of a sequence, that use all heads
  double beta = 0;
  std::string straight_through = "none";  // tuning leaves the routers as they were fitted
  Calibration calibration;
  at::ScalarType weights =
      at::kFloat;  // type that the weights will be saved in: they are rounded to it as they are made
  // Matrix products of the passes in bf16: twice as fast on CPUs that have them, and as good (docs/conversion.md). Sums
  // and solutions stay in fp32 and float64.
  std::optional<at::ScalarType> autocast = {};
  // Folders that a stopped conversion goes on from; "": none. What the first two passes find is the same for every
  // share, so that its folder may serve several conversions.
  std::string statistics, journal;
  std::function<void(double done, const std::string& step)> progress = {};
  std::function<bool()> stop = {};  // asked before every layer; true ends the work with Stopped
};

// Thrown where `stop` said so; the journal has what was done.
struct Stopped {};

// `dense` in fp32 on the CPU. Errors: a model that is not dense, a text that is too short.
models::Llama convert_by_scores(const models::Llama& dense, const RecipeOptions& options);

}  // namespace moh::convert
