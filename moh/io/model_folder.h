// Configuration and tensors of a model folder, and what holds where they disagree.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "moh/io/checkpoint.h"

namespace moh::io {

struct ModelFolder {
  Json config;
  std::string described_by;  // the file that config is from, for errors
  NamedTensors tensors;
};

// As transformers does it: weights of several types become config.json's (or the first one's); a head that differs from
// the embedding that it is tied to is kept, with a warning; a head alone is the embedding too. `check` may refuse the
// configuration before anything is said of the weights.
using ConfigCheck = std::function<void(const Json& config, const std::string& described_by)>;
ModelFolder load_model(const std::string& folder, std::optional<at::ScalarType> dtype = std::nullopt,
                       const ConfigCheck& check = {});

// The file that load_config reads, for errors.
std::string config_file(const std::string& folder);

}  // namespace moh::io
