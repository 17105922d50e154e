#include "cli/commands/dit_commands.h"

#include <fmt/format.h>

#include <filesystem>

#include "cli/report/report.h"
#include "moh/io/files.h"
#include "moh/models/dit_cost.h"
#include "moh/models/dit_folder.h"

namespace moh::cli {
namespace {

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
  if (is_dit_checkpoint(model)) return models::load_dit(model).config();
  return models::dit_preset(model);
}

// "0-9: 8 shared + 0 of 0 routed", layers that are alike together.
std::vector<std::string> layer_lines(const models::DitConfig& config) {
  std::vector<std::string> lines;
  for (std::int64_t i = 0; i < config.depth;) {
    std::int64_t end = i + 1;
    const auto same = [&](std::int64_t j) {
      return config.num_heads[j] == config.num_heads[i] && config.shared_heads(j) == config.shared_heads(i) &&
             config.top_k(j) == config.top_k(i);
    };
    while (end < config.depth && same(end)) ++end;
    lines.push_back(fmt::format("layers {}-{}: {} shared + {} of {} routed heads", i, end - 1, config.shared_heads(i),
                                config.top_k(i), config.num_heads[i] - config.shared_heads(i)));
    i = end;
  }
  return lines;
}

}  // namespace

bool is_dit_folder(const std::string& path) {
  return std::filesystem::exists(path + "/config.json") && models::is_dit_config(io::load_config(path));
}

bool is_dit_checkpoint(const std::string& path) { return models::is_dit_checkpoint_file(path); }

int convert_dit(const Context& context, const std::string& in, const std::string& out, const std::string& weights) {
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
  context.say(fmt::format("{}: {} parameters, {:.1f} % of the heads active, {} classes{}", out,
                          models::dit_parameter_count(config), 100 * config.activated_share(), config.num_classes,
                          both ? "; present and averaged weights" : ""));
  return 0;
}

int inspect_dit(const Context& context, const std::string& model, const std::string& data, const std::string& html) {
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
      {"parameters", std::to_string(cost.parameters)},
      {"active parameters", std::to_string(cost.active_parameters)},
      {"FLOPs of a forward pass",
       fmt::format("{:.4g} (dense {:.4g}; attention is {:.1f} % of that, with query and output projections {:.1f} %)",
                   cost.flops, cost.dense_flops, 100 * cost.attention_share, 100 * cost.head_share)}};
  const auto lines = layer_lines(config);
  if (!context.json) {
    for (const auto& [name, value] : facts) context.say(fmt::format("{:<24} {}", name, value));
    for (const std::string& text : lines) context.say(text);
  }
  if (!html.empty()) {
    Json report = Json::object(), list = Json::array();
    report["title"] = "Model " + model;
    for (const auto& [name, value] : facts) list.push_back({{"name", name}, {"value", value}});
    for (const std::string& text : lines) {
      const auto colon = text.find(':');
      list.push_back({{"name", text.substr(0, colon)}, {"value", text.substr(colon + 2)}});
    }
    report["facts"] = list;
    io::write_file(html, render_report(report));
    context.say("wrote " + html);
  }
  return 0;
}

}  // namespace moh::cli
