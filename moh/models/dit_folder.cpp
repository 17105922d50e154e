#include "moh/models/dit_folder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "moh/base/error.h"
#include "moh/io/torch_file.h"

namespace moh::models {
namespace {

namespace fs = std::filesystem;

// Shapes by name, without the two tensors whose sizes the picture size and the number of classes decide.
std::map<std::string, std::vector<std::int64_t>> model_shapes(const ParameterSpecs& parameters) {
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const ParameterSpec& spec : parameters) {
    if (spec.name == "pos_embed" || spec.name == "y_embedder.embedding_table.weight") continue;
    shapes.emplace(spec.name, spec.shape);
  }
  return shapes;
}

// The preset that a checkpoint without a configuration belongs to: K, which no tensor shows, is known from it alone.
DitConfig recognise(const io::NamedTensors& tensors, const std::string& file) {
  ParameterSpecs present;
  const at::Tensor* positions = nullptr;
  const at::Tensor* labels = nullptr;
  for (const auto& [name, tensor] : tensors) {
    if (name == "pos_embed") positions = &tensor;
    if (name == "y_embedder.embedding_table.weight") labels = &tensor;
    present.push_back({name, tensor.sizes().vec()});
  }
  MOH_CHECK(positions != nullptr && positions->dim() == 3 && labels != nullptr && labels->dim() == 2, "[dit] ", file,
            " holds no DiT: pos_embed or y_embedder is missing");
  const auto shapes = model_shapes(present);
  for (const std::string& name : dit_presets()) {
    DitConfig config = dit_preset(name);
    if (model_shapes(dit_parameters(config)) != shapes) continue;
    const auto side = static_cast<std::int64_t>(std::lround(std::sqrt(static_cast<double>(positions->size(1)))));
    MOH_CHECK(side * side == positions->size(1), "[dit] ", file, ": pos_embed of ", positions->size(1),
              " positions is not square");
    config.input_size = side * config.patch_size;
    config.num_classes = labels->size(0) - 1;  // one row is for "no class"
    check_dit_config(config, file);
    return config;
  }
  fail("[dit] ", file, " fits no preset; put a config.json beside it that says what it is");
}

bool is_safetensors_file(const std::string& path) { return path.ends_with(".safetensors"); }

io::NamedTensors read_checkpoint(const std::string& file, const std::string& weights) {
  if (is_safetensors_file(file)) {
    MOH_CHECK(weights == "auto", "[dit] ", file, " holds one set of weights; use --weights auto");
    return io::load_tensors(file);
  }
  std::vector<std::string> keys = {"ema", "model"};
  if (weights != "auto") keys = {weights};
  MOH_CHECK(weights == "auto" || io::TorchFile(file).first_key(keys), "[dit] ", file, " has no `", weights,
            "` weights; use --weights auto");
  return io::load_torch_tensors(file, keys);
}

Dit load_checkpoint(const std::string& file, const std::string& weights) {
  io::NamedTensors tensors = read_checkpoint(file, weights);
  for (auto& [name, tensor] : tensors) {
    if (at::isFloatingType(tensor.scalar_type())) tensor = tensor.to(at::kFloat);
  }
  const fs::path beside = fs::path(file).parent_path() / "config.json";
  if (fs::exists(beside)) {
    const std::string folder = beside.parent_path().empty() ? "." : beside.parent_path().string();
    const Json json = io::load_config(folder);
    if (is_dit_config(json)) return Dit(parse_dit_config(json, beside.string()), std::move(tensors));
  }
  DitConfig config = recognise(tensors, file);
  return Dit(std::move(config), std::move(tensors));
}

}  // namespace

Dit load_dit(const std::string& path, const std::string& weights) {
  MOH_CHECK(weights == "auto" || weights == "ema" || weights == "model",
            "[dit] weights must be auto, ema or model, got `", weights, "`");
  if (fs::is_regular_file(path)) {
    MOH_CHECK(is_safetensors_file(path) || io::is_torch_file(path), "[dit] ", path,
              " is neither a model folder nor a checkpoint (.pt of torch.save, .safetensors)");
    return load_checkpoint(path, weights);
  }
  const Json json = io::load_config(path);
  MOH_CHECK(is_dit_config(json), "[dit] ", path, "/config.json is not that of a DiT");
  DitConfig config = parse_dit_config(json, path + "/config.json");
  return Dit(std::move(config), load_weights(path, weights, "dit", at::kFloat));
}

bool is_dit_checkpoint_file(const std::string& path) {
  constexpr std::string_view kTensor = "x_embedder.proj.weight";
  if (!fs::is_regular_file(path)) return false;
  if (is_safetensors_file(path)) {
    for (const auto& [name, tensor] : io::load_tensors(path)) {
      if (name == kTensor) return true;
    }
    return false;
  }
  if (!io::is_torch_file(path)) return false;
  for (const auto& item : io::TorchFile(path).tensors({"ema", "model"})) {
    if (item.name == kTensor) return true;
  }
  return false;
}

bool has_both_weights(const std::string& path) {
  if (fs::is_directory(path)) return fs::exists(path + "/ema.safetensors") && fs::exists(path + "/model.safetensors");
  if (is_safetensors_file(path)) return false;
  const io::TorchFile file(path);
  return file.first_key({"ema"}) && file.first_key({"model"});
}

void save_averaged_dit(const Dit& averaged, const std::string& folder) {
  io::save_tensors(folder + "/ema.safetensors", averaged.parameters());
}

}  // namespace moh::models
