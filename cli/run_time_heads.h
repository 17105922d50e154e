// Options of commands that run a MoH model: how many routed heads a token uses, instead of what config.json says.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "moh/models/llama_routing.h"

namespace moh::cli {

struct RunTimeHeads {
  std::optional<std::int64_t> top_k;
  std::optional<double> activated;

  // `flag`: "--top-k", or "--moh-top-k" alone where --top-k is an option of sampling.
  void add_options(CLI::App& app, const char* flag) {
    auto* count = app.add_option(flag, top_k, "routed heads a token uses, in every layer; default: config.json's");
    app.add_option("--activated", activated,
                   "share of the heads that a token uses; instead of a number of routed heads")
        ->excludes(count);
  }
  void apply(models::LlamaConfig& config) const {
    if (top_k) models::set_top_k(config, *top_k);
    if (activated) models::set_activated_share(config, *activated);
  }
};

}  // namespace moh::cli
