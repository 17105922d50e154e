// Arrays from and to .npy and .npz files: features, class probabilities, pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace moh::io {

// By name; the one array of a .npy is called after nothing: "". np.savez and
// np.savez_compressed alike. Errors: not such a file, a dtype that is no number.
std::map<std::string, at::Tensor> load_arrays(const std::string& path);

// An uncompressed .npz of fp32 and uint8 arrays. The file is complete or not there. Error: an array of 4 GB or more.
void save_arrays(const std::string& path, const std::map<std::string, at::Tensor>& arrays);

}  // namespace moh::io
