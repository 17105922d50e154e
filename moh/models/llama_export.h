// Folders for Python's transformers: a MoH model with a modeling file of its own, a dense one as it is.
#pragma once

#include <string>

#include "moh/models/llama.h"

namespace moh::models {

// Weights, config.json and modeling_moh.py. The model_type gets a prefix of its own, so that transformers cannot load
// the folder as the dense model by accident; parse_llama_config reads it back.
void export_llama(const Llama& model, const std::string& folder);

}  // namespace moh::models
