// Checkpoints of the authors' training script: a .pth of torch.save, or .safetensors, without a configuration beside
// it.
#pragma once

#include <string>

#include "moh/models/vit.h"

namespace moh::models {

// `weights`: "ema", "model", or "auto": the averaged ones if the file has them. The configuration is that of `preset`,
// or, if that is empty, of the preset that has exactly these tensors; the number of classes is the file's. In fp32.
// Errors: no preset fits, more than one fits, a tensor that is missing or left over.
Vit load_vit_checkpoint(const std::string& file, const std::string& preset = "", const std::string& weights = "auto");

// The file's tensors look like a vision transformer's. A damaged file is an Error.
bool is_vit_checkpoint_file(const std::string& file);

}  // namespace moh::models
