#include "moh/models/llama_export.h"

#include "moh/base/error.h"
#include "moh/io/files.h"
#include "moh/models/llama_config_json.h"
#include "moh/models/llama_family.h"
#include "moh/models/modeling_moh.h"

namespace moh::models {
namespace {

void replace_all(std::string& text, const std::string& old, const std::string& by) {
  for (std::size_t at = text.find(old); at != std::string::npos; at = text.find(old, at + by.size())) {
    text.replace(at, old.size(), by);
  }
}

// modeling_moh.py is written for LLaMA and names the family nowhere but in class and module names.
std::string modeling_file(const LlamaFamily& family) {
  std::string text = kModelingMoh;
  const std::string architecture = family.architecture;
  const std::string prefix = architecture.substr(0, architecture.find("ForCausalLM"));
  const std::string config = family.config_class != nullptr ? family.config_class : prefix + "Config";
  const std::string type = family.model_type;
  replace_all(text, "LlamaConfig", config);
  replace_all(text, "LlamaModel", config.substr(0, config.find("Config")) + "Model");
  replace_all(text, std::string(kExportPrefix) + "llama", kExportPrefix + type);
  replace_all(text, "Llama", prefix);
  replace_all(text, "llama", type.substr(0, type.find("_text")));  // the module of a text model is named without that
  return text;
}

}  // namespace

void export_llama(const Llama& model, const std::string& folder) {
  const LlamaConfig& config = model.config();
  if (config.moh) {
    MOH_CHECK(!config.fused_projections, "[export] a MoH model of the family ", config.model_type,
              " cannot be exported: its queries, keys and values share one tensor");
    MOH_CHECK(config.attention_soft_cap == 0, "[export] a MoH model of the family ", config.model_type,
              " cannot be exported: its attention scores are soft-capped");
  }
  model.save(folder);
  if (!config.moh) return;
  const LlamaFamily* family = find_llama_family(model.config().model_type);
  MOH_CHECK(family != nullptr, "[export] unknown family `", model.config().model_type, "`");
  Json json = io::load_config(folder);
  json["model_type"] = std::string(kExportPrefix) + family->model_type;
  json["architectures"] = {"MohForCausalLM"};
  json["auto_map"] = {{"AutoConfig", "modeling_moh.MohConfig"},
                      {"AutoModel", "modeling_moh.MohModel"},
                      {"AutoModelForCausalLM", "modeling_moh.MohForCausalLM"}};
  io::write_file(folder + "/modeling_moh.py", modeling_file(*family));
  io::save_json(folder + "/config.json", json);
}

}  // namespace moh::models
