// What eval, inspect, convert and classify do with vision transformers.
#pragma once

#include <string>

#include "cli/command.h"
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
};
models::Vit open_vit(const Context& context, const std::string& folder, const VitUse& use);

// moh eval MODEL --data FOLDER: top-1, top-5.
int eval_vit(const Context& context, const std::string& model, const std::string& data, const VitUse& use);

// True for a file whose tensors are those of a vision transformer.
bool is_vit_checkpoint(const std::string& path);

// moh convert FILE OUT: a checkpoint of the authors (.pth, .safetensors) becomes a model folder.
int convert_vit(const Context& context, const std::string& file, const std::string& out, const std::string& preset,
                const std::string& weights);

// moh inspect MODEL|PRESET [--data FOLDER] [--html FILE]: costs, and the head load per class of the last routed layer.
int inspect_vit(const Context& context, const std::string& model, const std::string& data, const std::string& html);

}  // namespace moh::cli
