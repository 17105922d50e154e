// --weights of the commands that run language models: how their weights are stored and multiplied by.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "moh/models/llama.h"

namespace moh::cli {

struct StoredWeights {
  std::string choice = "same";

  // `also`: what the option may be for a command's other kinds of models, and what that means.
  void add_option(CLI::App& app, const std::vector<std::string>& also = {}, const std::string& meaning = "");
  // `folder`: where the model is from. Returns the bytes of weights stored anew, 0 for "same".
  std::int64_t apply(models::Llama& model, const std::string& folder) const;
};

}  // namespace moh::cli
