#include "moh/models/parameters.h"

#include <ATen/ATen.h>

#include <filesystem>

#include "moh/base/error.h"

namespace moh::models {

using at::Tensor;

std::int64_t parameter_count(const ParameterSpecs& specs, bool trained_only) {
  std::int64_t count = 0;
  for (const ParameterSpec& spec : specs) {
    if (!spec.tied_to.empty() || (trained_only && !spec.trained)) continue;
    std::int64_t size = 1;
    for (const std::int64_t extent : spec.shape) size *= extent;
    count += size;
  }
  return count;
}

io::NamedTensors draw_parameters(const ParameterSpecs& specs,
                                 const std::function<void(const ParameterSpec&, Tensor&)>& draw) {
  io::NamedTensors tensors;
  for (const ParameterSpec& spec : specs) {
    if (!spec.tied_to.empty()) continue;
    Tensor tensor = at::zeros(spec.shape, at::TensorOptions(at::kFloat));
    draw(spec, tensor);
    tensors.emplace_back(spec.name, tensor);
  }
  return tensors;
}

io::NamedTensors load_weights(const std::string& folder, const std::string& weights, const std::string& model,
                              std::optional<at::ScalarType> dtype) {
  MOH_CHECK(weights == "auto" || weights == "ema" || weights == "model", "[", model,
            "] weights must be auto, ema or model, got `", weights, "`");
  const std::string averaged = folder + "/ema.safetensors";
  const bool has_averaged = weights != "model" && std::filesystem::exists(averaged);
  MOH_CHECK(weights != "ema" || has_averaged, "[", model, "] ", folder,
            " has no averaged weights (ema.safetensors); use `model`");
  return io::load_tensors(has_averaged ? averaged : folder, dtype);
}

Parameters::Parameters(const Owner& owner, ParameterSpecs specs, io::NamedTensors tensors) : model_(owner.model) {
  std::unordered_map<std::string, Tensor> by_name;
  for (auto& [name, tensor] : tensors) by_name.emplace(name, std::move(tensor));
  for (ParameterSpec& spec : specs) {
    if (!spec.tied_to.empty()) {
      index_.emplace(spec.name, index_.at(spec.tied_to));
      by_name.erase(spec.name);
      continue;
    }
    const auto found = by_name.find(spec.name);
    MOH_CHECK(found != by_name.end(), "[", model_, "] tensor `", spec.name, "` is missing from the checkpoint");
    const Tensor& tensor = found->second;
    MOH_CHECK(tensor.sizes() == at::IntArrayRef(spec.shape), "[", model_, "] tensor `", spec.name, "` must be ",
              at::IntArrayRef(spec.shape), " by ", owner.described_by, ", got ", tensor.sizes());
    MOH_CHECK(at::isFloatingType(tensor.scalar_type()), "[", model_, "] tensor `", spec.name,
              "` must be of a floating type, got ", tensor.scalar_type());
    index_.emplace(spec.name, tensors_.size());
    tensors_.emplace_back(spec.name, tensor);
    by_name.erase(found);
    specs_.push_back(std::move(spec));
  }
  for (const auto& [name, tensor] : by_name) {
    MOH_CHECK(owner.is_derived != nullptr && owner.is_derived(name), "[", model_, "] tensor `", name,
              "` of the checkpoint has no place in the model of ", owner.described_by);
  }
}

const Tensor& Parameters::operator[](const std::string& name) const {
  const auto found = index_.find(name);
  MOH_CHECK(found != index_.end(), "[", model_, "] the model has no tensor `", name, "`");
  return tensors_[found->second].second;
}

std::optional<Tensor> Parameters::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? std::nullopt : std::optional(tensors_[found->second].second);
}

layers::Linear Parameters::linear(const std::string& name, layers::Product product) const {
  layers::Linear linear((*this)[name + ".weight"], find(name + ".bias"), product);
  const auto blocks = blocks_.find(index_.at(name + ".weight"));
  return blocks == blocks_.end() ? linear : linear.with_blocks(blocks->second);
}

void Parameters::know_blocks(const std::string& name, ops::BlockedWeight blocks) {
  const auto found = index_.find(name);
  if (found != index_.end()) blocks_.insert_or_assign(found->second, std::move(blocks));
}

std::vector<at::Tensor> Parameters::under(const std::string& prefix) const {
  std::vector<at::Tensor> found;
  for (const auto& [name, tensor] : tensors_) {
    if (name.starts_with(prefix)) found.push_back(tensor);
  }
  return found;
}

std::vector<bool> Parameters::decays() const {
  std::vector<bool> decays;
  for (const ParameterSpec& spec : specs_) decays.push_back(spec.decays);
  return decays;
}

std::int64_t Parameters::count() const { return parameter_count(specs_); }

void Parameters::to(at::Device device) {
  for (auto& [name, tensor] : tensors_) tensor = tensor.to(device);
}

void Parameters::set_requires_grad(bool requires_grad) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].second.set_requires_grad(requires_grad && specs_[i].trained);
  }
}

void Parameters::save(const std::string& folder, const Json& config) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  MOH_CHECK(!error, "[", model_, "] cannot make folder ", folder, ": ", error.message());
  io::save_tensors(folder + "/model.safetensors", tensors_);
  io::save_json(folder + "/config.json", config);
}

}  // namespace moh::models
