// The tensors that a model consists of: one list says their names, shapes and rules, and everything that is done with
// all of them at once is done here, for every model alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "moh/io/checkpoint.h"
#include "moh/layers/linear.h"

namespace moh::models {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool decays = true;        // weight decay applies
  bool trained = true;       // false: saved with the model, never changed
  std::string tied_to = {};  // another name of that tensor: not saved, and ignored where a checkpoint has it too
};

using ParameterSpecs = std::vector<ParameterSpec>;

// Numbers in all tensors, tied ones once.
std::int64_t parameter_count(const ParameterSpecs& specs, bool trained_only = false);

// fp32 tensors for a new model: zeros, as `draw` fills them one by one in order.
io::NamedTensors draw_parameters(const ParameterSpecs& specs,
                                 const std::function<void(const ParameterSpec&, at::Tensor&)>& draw);

// Tensors of a model folder, beside which training may have left averaged weights in ema.safetensors. `weights`: model,
// ema, or auto (the averaged ones if they are there). Errors begin with [model].
io::NamedTensors load_weights(const std::string& folder, const std::string& weights, const std::string& model,
                              std::optional<at::ScalarType> dtype = std::nullopt);

class Parameters {
 public:
  // How a model speaks of itself in errors, and which buffers a checkpoint may carry although they follow from the
  // configuration.
  struct Owner {
    const char* model;                                      // "llama"
    const char* described_by = "config.json";               // what fixes the shapes
    bool (*is_derived)(const std::string& name) = nullptr;  // none
  };

  Parameters() = default;
  // Takes the tensors by name, in the order of the specs; an Error names what is missing, left over, of the wrong shape
  // or not of a floating type.
  Parameters(const Owner& owner, ParameterSpecs specs, io::NamedTensors tensors);

  // To bind a model's members. A name that the list does not have is an Error; find: nullopt.
  const at::Tensor& operator[](const std::string& name) const;
  std::optional<at::Tensor> find(const std::string& name) const;
  // NAME.weight, with NAME.bias if there is one.
  layers::Linear linear(const std::string& name, layers::Product product = layers::Product::kFastest) const;
  // How a file has a tensor: linear() tells it to its maps. Nothing for a name that the list does not have.
  void know_blocks(const std::string& name, ops::BlockedWeight blocks);

  const io::NamedTensors& tensors() const { return tensors_; }
  std::vector<at::Tensor> under(const std::string& prefix) const;  // those whose names begin so
  std::vector<bool> decays() const;                                // of each tensor
  std::int64_t count() const;
  at::Device device() const { return tensors_.front().second.device(); }
  // After it a model binds its members anew.
  void to(at::Device device);
  void set_requires_grad(bool requires_grad);  // of those that are trained
  // model.safetensors and config.json; the folder is made if need be.
  void save(const std::string& folder, const Json& config) const;

 private:
  std::string model_;
  ParameterSpecs specs_;      // of tensors_, one by one
  io::NamedTensors tensors_;  // as saved
  std::unordered_map<std::string, std::size_t> index_;
  std::unordered_map<std::size_t, ops::BlockedWeight> blocks_;
};

}  // namespace moh::models
