// Tensors of a model folder: one model.safetensors, or shards with model.safetensors.index.json.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moh/base/fields.h"

namespace moh::io {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// All tensors of a folder (or of one .safetensors file), in file order. They lie in a private map of the file: nothing
// is read before it is used, and writing to a tensor never reaches the file. With `dtype`, floating tensors of another
// type are converted one by one, each one's part of the map being given back, so that memory stays at what is kept and
// one tensor more. Errors: a missing shard, a tensor in no shard or not where the index says.
NamedTensors load_tensors(const std::string& path, std::optional<at::ScalarType> dtype = std::nullopt);

// Error "[where] tensor `x` holds NaN or infinity" for the first such tensor.
void check_finite(const NamedTensors& tensors, const std::string& where);

// Tensors of a checkpoint that torch.save wrote (moh/io/torch_file.h): of the dictionary under the first of `keys` that
// it has, or of the file's own dictionary. Copied, contiguous, in the file's order.
NamedTensors load_torch_tensors(const std::string& file, const std::vector<std::string>& keys);

// One model.safetensors; contiguous CPU copies are made where needed.
void save_tensors(const std::string& file, const NamedTensors& tensors,
                  const std::map<std::string, std::string>& metadata = {});

// FOLDER/config.json, at most 16 MB.
Json load_config(const std::string& folder);
void save_json(const std::string& file, const Json& json);

// Copies tokenizer files and generation_config.json of one model folder to another.
void copy_companions(const std::string& from, const std::string& to);

}  // namespace moh::io
