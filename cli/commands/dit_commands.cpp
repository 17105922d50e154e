// What inspect and convert do with DiTs.
#include <fmt/format.h>

#include <filesystem>

#include "cli/layer_heads.h"
#include "cli/model_kind.h"
#include "cli/progress.h"
#include "cli/report/report.h"
#include "moh/io/files.h"
#include "moh/models/dit_cost.h"
#include "moh/models/dit_folder.h"

namespace moh::cli {
namespace {

constexpr const char* kDitName = "a DiT";

// A folder whose config.json is of a DiT.
bool is_dit_folder(const std::string& path) {
  return std::filesystem::exists(path + "/config.json") && models::is_dit_config(io::load_config(path));
}

Json layers_of(const models::DitConfig& config) {
  Json layers = Json::array();
  for (std::int64_t i = 0; i < config.depth; ++i) {
    layers.push_back(
        {{"heads", config.num_heads[i]}, {"shared_heads", config.shared_heads(i)}, {"top_k", config.top_k(i)}});
  }
  return layers;
}

models::DitConfig config_of(const std::string& model) {
  if (is_dit_folder(model)) return models::parse_dit_config(io::load_config(model), model + "/config.json");
  if (models::is_dit_checkpoint_file(model)) return models::load_dit(model).config();
  return models::dit_preset(model);
}

std::vector<LayerHeads> layer_heads(const models::DitConfig& config) {
  std::vector<LayerHeads> layers;
  for (std::int64_t i = 0; i < config.depth; ++i) {
    LayerHeads heads{.name = std::to_string(i), .shared = {}, .selected = std::to_string(config.top_k(i)), .load = {}};
    for (std::int64_t head = 0; head < config.num_heads[i]; ++head)
      heads.shared.push_back(head < config.shared_heads(i));
    layers.push_back(std::move(heads));
  }
  return layers;
}

// A checkpoint of the authors (.pt, .safetensors) or a folder becomes a model folder; of weights `auto`, both the
// present and the averaged ones where there are both.
int convert_dit(const Context& context, const ModelKind::Conversion& conversion) {
  const auto& [in, out, preset, weights] = conversion;
  MOH_CHECK(preset.empty(), "[convert] ", in, " is ", kDitName,
            ": its shapes tell its configuration, leave --preset out");
  MOH_CHECK(!std::filesystem::exists(out + "/model.safetensors"), "[convert] ", out,
            " holds a model already; choose another folder");
  const bool both = weights == "auto" && models::has_both_weights(in);
  const models::Dit model = models::load_dit(in, both ? "model" : weights);
  io::check_finite(model.parameters(), in);
  model.save(out);
  if (both) models::save_averaged_dit(models::load_dit(in, "ema"), out);
  const models::DitConfig& config = model.config();
  Json line = Json::object();
  line["parameters"] = models::dit_parameter_count(config);
  line["activated"] = config.activated_share();
  line["layers"] = layers_of(config);
  line["weights"] = both ? "model, ema" : weights;
  context.emit(line);
  context.say(fmt::format("wrote {}: {} parameters, {:.1f} % of the heads active, {} classes{}", out,
                          with_commas(models::dit_parameter_count(config)), 100 * config.activated_share(),
                          config.num_classes, both ? "; present and averaged weights" : ""));
  return 0;
}

// Costs, heads of each layer.
int inspect_dit(const Context& context, const ModelKind::Inspection& inspection) {
  const auto& [model, data, html] = inspection;
  MOH_CHECK(data.empty(), "[inspect] --data is for language models and vision transformers; of a DiT `moh train` logs ",
            "the share of active heads");
  const models::DitConfig config = config_of(model);
  const std::int64_t side = config.input_size / config.patch_size, tokens = side * side;
  const auto cost = models::dit_cost(config, tokens);
  Json line = Json::object();
  line["model"] = model;
  line["parameters"] = cost.parameters;
  line["active_parameters"] = cost.active_parameters;
  line["activated"] = config.activated_share();
  line["tokens"] = tokens;
  line["flops_per_image"] = cost.flops;  // one forward pass; sampling needs one a step, two with guidance
  line["dense_flops_per_image"] = cost.dense_flops;
  line["flops_per_token"] = cost.flops / static_cast<double>(tokens);
  line["kv_bytes_per_token"] = 0;  // nothing is cached
  line["attention_share"] = cost.attention_share;
  line["head_share"] = cost.head_share;
  line["layers"] = layers_of(config);
  line["config"] = models::dit_config_json(config);
  context.emit(line);
  const std::vector<std::pair<std::string, std::string>> facts = {
      {"layers", std::to_string(config.depth)},
      {"hidden size", std::to_string(config.hidden_size)},
      {"head size", std::to_string(config.head_dim)},
      {"denoises", fmt::format("{}s of {} x {} x {}, {} tokens", config.space, config.in_channels, config.input_size,
                               config.input_size, tokens)},
      {"classes", std::to_string(config.num_classes)},
      {"heads active", fmt::format("{:.1f} %", 100 * config.activated_share())},
      {"parameters", with_commas(cost.parameters)},
      {"active parameters", with_commas(cost.active_parameters)},
      {"FLOPs of a forward pass", with_unit(cost.flops)},
      {"of the dense model", with_unit(cost.dense_flops)},
      {"attention's share of that", fmt::format("{:.1f} %", 100 * cost.attention_share)},
      {"with its projections", fmt::format("{:.1f} %", 100 * cost.head_share)}};
  if (!context.json) {
    for (const auto& [name, value] : facts) context.say(fmt::format("{:<26} {}", name, value));
    if (config.moh) say_layer_heads(context, "layers", layer_heads(config));
  }
  if (!html.empty()) {
    Json report = Json::object(), list = Json::array();
    const auto path = std::filesystem::path(model).lexically_normal();
    report["title"] = "DiT " + (path.has_filename() ? path : path.parent_path()).filename().string();
    report["subtitle"] = std::filesystem::exists(model) ? model : "a preset";
    for (const auto& [name, value] : facts) list.push_back({{"name", name}, {"value", value}});
    report["facts"] = list;
    if (config.moh) {
      report["sections"] = {
          {{"heading", "Heads by layer"}, {"items", {layer_heads_picture("layer", 1, layer_heads(config))}}}};
    }
    io::write_file(html, render_report(report));
    context.say("wrote " + html);
  }
  return 0;
}

const RegisteredModelKind registered{{kDitName, "DiT", is_dit_folder, models::is_dit_checkpoint_file,
                                      models::dit_presets, "sample", convert_dit, inspect_dit, nullptr}};

}  // namespace
}  // namespace moh::cli
