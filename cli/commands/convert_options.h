// What `moh convert` is asked to do with a dense language model, and the two ways of doing it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "moh/convert/calibration.h"
#include "moh/models/llama.h"

namespace moh::cli {

struct ConvertOptions {
  std::string preset, weights = "auto";
  std::string in, out, export_to, recipe = "paper", router = "norm", straight_through, select = "head";
  std::string shared_by = "first", budget = "uniform", choose = "top-k", statistics, tokenizer;
  std::int64_t vocabulary = 0;
  std::vector<std::string> data;
  bool fit_router = false, weighted = false, mean_heads = false, refit = false;
  std::int64_t leading_tokens = 0;
  double activated = 0.75, beta = 0.01;
  std::optional<double> shared;
  std::optional<std::int64_t> top_k;
  convert::Calibration calibration;
};

// The texts of --data, which calibration then names. Error: there is none.
std::vector<data::TokenStream> open_texts(const ConvertOptions& options, const models::LlamaConfig& config,
                                          convert::Calibration& calibration);

// The paper's form: its routers, shared heads, and what they can learn from calibration text.
models::Llama convert_as_paper(const Context& context, const ConvertOptions& options, models::LlamaConfig config,
                               io::NamedTensors tensors);
// The linear router, whose every step reads calibration text.
models::Llama convert_linear(const Context& context, const ConvertOptions& options, const models::LlamaConfig& config,
                             io::NamedTensors tensors);

}  // namespace moh::cli
