// Which files of a model folder hold its weights: one file, shards with an index, or numbered shards without one, of
// safetensors or of torch.save. Torch-free.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

namespace moh::io {

struct WeightFiles {
  bool of_torch = false;           // pytorch_model*.bin, files of torch.save; else model*.safetensors
  std::vector<std::string> files;  // with the folder's path, in order of first mention
  // From an index: the file (without path) of every tensor. Empty: there is no index.
  std::map<std::string, std::string> file_of;
  std::string index_file;
};

// safetensors before torch.save's files, as transformers has it. Errors: no weights, with what the folder holds instead
// and what to do about it; an index that is damaged or names files elsewhere; a shard that is missing.
WeightFiles find_weights(const std::string& folder);

// Folders inside that are models, to name one of them in an error: "; did you mean FOLDER/snapshots/x?", or "".
std::string model_folder_hint(const std::string& folder);

// Error, beginning with `prefix`, where a file is not what its name says but the note of Git LFS that stands for it, or
// the web page that came instead.
void refuse_stand_in(std::span<const std::byte> content, const std::string& prefix);

}  // namespace moh::io
