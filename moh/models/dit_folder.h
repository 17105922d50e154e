// DiT models from and to disk: a folder with config.json and model.safetensors, beside it the averaged weights in
// ema.safetensors; or a checkpoint of the authors' training script (.pt with ema, model, opt and args), or its tensors
// alone in a .safetensors file.
#pragma once

#include <optional>
#include <string>

#include "moh/models/dit.h"

namespace moh::models {

// Which weights: "auto" takes the averaged ones if they are there, as samples are made from them; "ema", "model".
// `path` is a folder or a checkpoint; a checkpoint whose folder has no config.json must be that of a preset. Errors: no
// such folder, weights that are not there or do not fit config.json, a checkpoint that is cut short.
Dit load_dit(const std::string& path, const std::string& weights = "auto");
// True for a checkpoint file (.pt, .safetensors) whose tensors are those of a DiT.
bool is_dit_checkpoint_file(const std::string& path);
// Whether load_dit(path, "ema") finds averaged weights and load_dit(path, "model") present ones beside them.
bool has_both_weights(const std::string& path);
// Averaged weights beside the model's: ema.safetensors.
void save_averaged_dit(const Dit& averaged, const std::string& folder);

}  // namespace moh::models
