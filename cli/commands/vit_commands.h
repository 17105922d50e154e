// What commands do with vision transformers.
#pragma once

#include <string>

#include "cli/model_kind.h"
#include "moh/models/vit.h"

namespace moh::cli {

// True for a folder whose config.json is of a vision transformer.
bool is_vit_folder(const std::string& path);

// How a trained model is used.
struct VitUse {
  std::string weights = "auto";  // averaged ones if they are there; ema; model
  std::int64_t image_size = 0;   // pixels; 0: the model's
  std::int64_t batch = 64;

  void add_options(CLI::App& app);  // --weights, --image-size
  void add_image_size(CLI::App& app);
};
// How errors call these models.
inline constexpr const char* kVitName = "a vision transformer";
inline constexpr const char* kVitGroup = "ViT";
models::Vit open_vit(const Context& context, const std::string& folder, const VitUse& use);

// moh convert FILE OUT: a checkpoint of the authors (.pth, .safetensors) becomes a model folder.
int convert_vit(const Context& context, const ModelKind::Conversion& conversion);

}  // namespace moh::cli
