#include "moh/io/model_folder.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <map>

#include "moh/io/gguf.h"

namespace moh::io {
namespace {

// config.json's `dtype` (transformers 5) or `torch_dtype`, "bfloat16" or "torch.bfloat16"; nothing where it is silent.
std::optional<at::ScalarType> described_type(const Json& config) {
  static const std::map<std::string, at::ScalarType> types = {
      {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}};
  for (const char* key : {"dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    if (found == config.end() || !found->is_string()) continue;
    auto name = found->get<std::string>();
    if (name.starts_with("torch.")) name.erase(0, 6);
    if (const auto type = types.find(name); type != types.end()) return type->second;
  }
  return std::nullopt;
}

// Weights of several types become one: config.json's, or where it is silent that of the first tensor, as in
// transformers.
void make_one_type(const std::string& folder, ModelFolder& model) {
  std::optional<at::ScalarType> first;
  bool mixed = false;
  for (const auto& [name, tensor] : model.tensors) {
    if (!tensor.is_floating_point()) continue;
    mixed = mixed || (first && tensor.scalar_type() != *first);
    if (!first) first = tensor.scalar_type();
  }
  if (!mixed) return;
  model.tensors.clear();  // mapped, hardly read
  model.tensors = load_tensors(folder, described_type(model.config).value_or(*first));
}

// The head of a model whose config.json ties it to the embedding, explicitly or by silence: one that differs is kept;
// and where the folder has the head alone it is the embedding too. transformers does the same.
void check_tied_head(const std::string& folder, ModelFolder& model) {
  constexpr const char *kEmbedding = "model.embed_tokens.weight", *kHead = "lm_head.weight";
  const auto tied = model.config.find("tie_word_embeddings");
  if (tied != model.config.end() && *tied == false) return;
  const at::Tensor *embedding = nullptr, *head = nullptr;
  for (const auto& [name, tensor] : model.tensors) {
    if (name == kEmbedding) embedding = &tensor;
    if (name == kHead) head = &tensor;
  }
  if (head == nullptr) return;
  if (embedding == nullptr) {
    const at::Tensor shared = *head;
    model.tensors.emplace_back(kEmbedding, shared);
    return;
  }
  if (embedding->data_ptr() == head->data_ptr() ||
      (embedding->sizes() == head->sizes() && at::equal(*embedding, *head))) {
    return;
  }
  if (tied != model.config.end() && *tied == true) {
    TORCH_WARN(folder,
               ": lm_head.weight differs from the embedding, to which config.json ties it; it is kept, and the two ",
               "are not tied (tie_word_embeddings: false)");
  }
  model.config["tie_word_embeddings"] = false;
}

}  // namespace

ModelFolder load_model(const std::string& folder, std::optional<at::ScalarType> dtype, const ConfigCheck& check) {
  ModelFolder model;
  model.config = load_config(folder);
  model.described_by = config_file(folder);
  if (check) check(model.config, model.described_by);
  model.tensors = load_tensors(folder, dtype);
  if (!dtype) make_one_type(folder, model);
  check_tied_head(folder, model);
  return model;
}

std::string config_file(const std::string& folder) { return find_gguf(folder).value_or(folder + "/config.json"); }

}  // namespace moh::io
