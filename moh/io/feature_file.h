// Arrays of floats from .npy and .npz files: features and class probabilities that another program computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace moh::io {

// By name; the one array of a .npy is called after nothing: "". Errors: not such a file, compressed entries, a dtype
// that is no number.
std::map<std::string, at::Tensor> load_arrays(const std::string& path);

}  // namespace moh::io
