// What inspect and convert do with DiTs.
#pragma once

#include <string>

#include "cli/command.h"

namespace moh::cli {

// True for a folder whose config.json is of a DiT; for a checkpoint file with a DiT's tensors.
bool is_dit_folder(const std::string& path);
bool is_dit_checkpoint(const std::string& path);

// moh convert IN OUT: a checkpoint of the authors (.pt, .safetensors) or a folder becomes a model folder; of weights
// `auto`, both the present and the averaged ones where there are both.
int convert_dit(const Context& context, const std::string& in, const std::string& out, const std::string& weights);

// moh inspect MODEL|PRESET [--html FILE]: costs, heads of each layer.
int inspect_dit(const Context& context, const std::string& model, const std::string& data, const std::string& html);

}  // namespace moh::cli
