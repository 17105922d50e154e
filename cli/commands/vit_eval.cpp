#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <memory>

#include "cli/commands/vit_commands.h"
#include "cli/layer_heads.h"
#include "cli/progress.h"
#include "cli/report/report.h"
#include "moh/base/error.h"
#include "moh/eval/image_classification.h"
#include "moh/io/files.h"
#include "moh/models/vit_checkpoint.h"
#include "moh/models/vit_cost.h"
#include "moh/ops/autocast.h"
#include "moh/ops/memory_pool.h"

namespace moh::cli {
namespace {

void say_skipped(const Context& context, const std::vector<std::string>& skipped) {
  if (skipped.empty()) return;
  context.say(
      fmt::format("{} pictures could not be read and were left out; the first: {}", skipped.size(), skipped[0]));
}

eval::ClassificationResult measure(const Context& context, const std::string& folder, const std::string& data,
                                   const VitUse& use, const char* name) {
  const ops::MemoryPool pool;  // every batch is like the last
  const models::Vit model = open_vit(context, folder, use);
  const auto pictures = data::ImageFolder::open(data);
  Progress progress(name, "images", static_cast<double>(pictures.items.size()));
  auto result = eval::classify_folder(model, pictures, {.batch = use.batch, .autocast = context.autocast_type()},
                                      [&](double done) { progress.update(done); });
  progress.finish();
  say_skipped(context, result.skipped);
  return result;
}

// Rows: classes; columns: the routed heads of the last routed layer, as in the paper's figure.
Json load_section(const eval::ClassificationResult& result, const models::VitConfig& config, const std::string& data) {
  Json values = Json::array(), rows = Json::array(), columns = Json::array();
  for (std::size_t i = 0; i < result.head_load.size(); ++i) {
    rows.push_back(config.classes.empty() ? std::to_string(i) : config.classes[i]);
    values.push_back(result.head_load[i]);
  }
  for (std::size_t head = 0; head < result.head_load[0].size(); ++head) columns.push_back(std::to_string(head));
  Json map = {{"type", "heatmap"},
              {"title", "Share of tokens that select each routed head of " + result.head_load_layer},
              {"x_label", "routed head"},
              {"y_label", "class"},
              {"x", columns},
              {"y", rows},
              {"values", values}};
  return {{"heading", "Head load by class"},
          {"text", fmt::format("Measured on {} pictures of {}.", result.images, data)},
          {"items", {map}}};
}

}  // namespace

void VitUse::add_options(CLI::App& app) {
  app.add_option("--weights", weights, "auto (averaged ones if they are there), ema, model")
      ->check(CLI::IsMember({"auto", "ema", "model"}))
      ->group(kVitGroup);
  add_image_size(app);
}

void VitUse::add_image_size(CLI::App& app) {
  app.add_option("--image-size", image_size, "pixels; position tables are made anew; 0: the model's")->group(kVitGroup);
}

models::Vit open_vit(const Context& context, const std::string& folder, const VitUse& use) {
  models::Vit model = models::Vit::load(folder, at::kFloat, use.weights);
  if (use.image_size != 0) model.set_image_size(use.image_size);
  model.to(context.torch_device());
  return model;
}

bool is_vit_folder(const std::string& path) {
  return std::filesystem::exists(path + "/config.json") && models::is_vit_config(io::load_config(path));
}

namespace {

void refuse_file(const char* command, const std::string& model) {
  MOH_CHECK(!std::filesystem::is_regular_file(model), "[", command, "] ", model, " is a checkpoint file of ", kVitName,
            "; `moh convert FILE FOLDER` makes a model folder of it");
}

// moh eval MODEL --data FOLDER: top-1, top-5.
int eval_vit(const Context& context, const std::string& model, const std::string& data, const VitUse& use) {
  const auto start = std::chrono::steady_clock::now();
  const auto result = measure(context, model, data, use, "eval");
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Json line = Json::object();
  line["top1"] = result.top1;
  line["top5"] = result.top5;
  line["images"] = result.images;
  line["loss"] = result.loss;
  line["skipped"] = result.skipped.size();
  line["active_heads"] = result.active_heads;
  line["images_per_second"] = static_cast<double>(result.images) / seconds;
  context.emit(line);
  if (!context.json) {
    context.say(fmt::format(
        "top-1 {:.2f} %, top-5 {:.2f} % of {} images, {:.1f} % of the heads active, {:.1f} images/s", 100 * result.top1,
        100 * result.top5, result.images, 100 * result.active_heads, static_cast<double>(result.images) / seconds));
  }
  return 0;
}

ModelKind::Evaluation setup_eval(CLI::App& app, Context& context) {
  const auto use = std::make_shared<VitUse>();
  app.add_option("--images", use->batch, "pictures at a time")->group(kVitGroup);
  use->add_image_size(app);
  return [use, &app, &context](const std::string& model, const std::string& data) {
    refuse_file("eval", model);
    allow_only(app, {"--data", "--weights"}, kVitGroup, model, kVitName);
    if (const auto* weights = app.get_option("--weights"); weights->count() > 0) {
      use->weights = weights->as<std::string>();
      MOH_CHECK(use->weights == "auto" || use->weights == "ema" || use->weights == "model", "[eval] ", model, " is ",
                kVitName, ", for which --weights is auto, ema or model; got ", use->weights);
    }
    return eval_vit(context, model, data, *use);
  };
}

std::vector<LayerHeads> stage_heads(const models::VitConfig& config) {
  std::vector<LayerHeads> stages;
  for (std::size_t i = 0; i < config.embed_dims.size(); ++i) {
    LayerHeads heads{
        .name = std::to_string(i + 1), .shared = {}, .selected = std::to_string(config.top_k(i)), .load = {}};
    for (std::int64_t head = 0; head < config.num_heads[i]; ++head)
      heads.shared.push_back(head < config.shared_heads(i));
    stages.push_back(std::move(heads));
  }
  return stages;
}

void say_stages(const Context& context, const models::VitConfig& config) {
  context.say(fmt::format("\n{:<9} {:>6} {:>6}  {}", "stages", "blocks", "width", "attention"));
  for (std::size_t i = 0; i < config.embed_dims.size(); ++i) {
    context.say(fmt::format("{:<9} {:>6} {:>6}  {}", i + 1, config.depths[i], config.embed_dims[i],
                            config.sr_ratios[i] > 1 ? "window and pooled keys" : "full"));
  }
  if (config.moh) say_layer_heads(context, "stages", stage_heads(config));
}

void say_load(const Context& context, const models::VitConfig& config, const eval::ClassificationResult& result) {
  context.say(
      fmt::format("\n{:<20}   % of the tokens that select each routed head of {}", "class", result.head_load_layer));
  for (std::size_t i = 0; i < result.head_load.size(); ++i) {
    std::string text = fmt::format("{:<20}", config.classes.empty() ? std::to_string(i) : config.classes[i]);
    for (const double share : result.head_load[i]) text += fmt::format(" {:3.0f}", 100 * share);
    context.say(text);
  }
}

// Costs, and the head load per class of the last routed layer.
int inspect_vit(const Context& context, const ModelKind::Inspection& inspection) {
  const auto& [model, data, html] = inspection;
  const bool is_folder = std::filesystem::is_directory(model);
  refuse_file("inspect", model);
  const models::VitConfig config =
      is_folder ? models::parse_vit_config(io::load_config(model), model + "/config.json") : models::vit_preset(model);
  const auto cost = models::vit_cost(config, config.image_size);
  const std::int64_t tokens = config.map_size(0, config.image_size) * config.map_size(0, config.image_size);
  Json line = Json::object();
  line["model"] = model;
  line["parameters"] = cost.parameters;
  line["active_parameters"] = cost.active_parameters;
  line["activated"] = config.activated_share();
  line["flops_per_image"] = cost.flops;
  line["dense_flops_per_image"] = cost.dense_flops;
  line["flops_per_token"] = cost.flops / static_cast<double>(tokens);
  line["kv_bytes_per_token"] = 0;  // nothing is cached
  line["attention_share"] = cost.attention_share;
  line["config"] = models::vit_config_json(config);
  std::optional<eval::ClassificationResult> result;
  if (!data.empty()) {
    MOH_CHECK(is_folder, "[inspect] --data needs a model folder, `", model, "` is a preset");
    result = measure(context, model, data, VitUse(), "inspect");
    line["top1"] = result->top1;
    line["head_load"] = result->head_load;
    line["head_load_layer"] = result->head_load_layer;
    line["head_load_images"] = result->images;
  }
  context.emit(line);

  const std::vector<std::pair<std::string, std::string>> facts = {
      {"stages", std::to_string(config.embed_dims.size())},
      {"image size", std::to_string(config.image_size)},
      {"classes", std::to_string(config.num_classes)},
      {"heads active", fmt::format("{:.1f} %", 100 * config.activated_share())},
      {"parameters", with_commas(cost.parameters)},
      {"active parameters", with_commas(cost.active_parameters)},
      {"FLOPs an image", with_unit(cost.flops)},
      {"of the dense model", with_unit(cost.dense_flops)},
      {"heads' share of that", fmt::format("{:.1f} %, with query and output projections", 100 * cost.attention_share)}};
  if (!context.json) {
    for (const auto& [name, value] : facts) context.say(fmt::format("{:<24} {}", name, value));
    say_stages(context, config);
    if (result && !result->head_load.empty()) say_load(context, config, *result);
  }
  if (!html.empty()) {
    Json report = Json::object();
    const auto path = std::filesystem::path(model).lexically_normal();
    report["title"] = "Vision transformer " + (path.has_filename() ? path : path.parent_path()).filename().string();
    report["subtitle"] = is_folder ? model : "a preset";
    Json list = Json::array();
    for (const auto& [name, value] : facts) list.push_back({{"name", name}, {"value", value}});
    report["facts"] = list;
    report["sections"] = Json::array();
    if (config.moh) {
      report["sections"].push_back(
          {{"heading", "Heads by stage"}, {"items", {layer_heads_picture("stage", 1, stage_heads(config))}}});
    }
    if (result && !result->head_load.empty()) report["sections"].push_back(load_section(*result, config, data));
    io::write_file(html, render_report(report));
    context.say("wrote " + html);
  }
  return 0;
}

const RegisteredModelKind registered{{kVitName, kVitGroup, is_vit_folder, models::is_vit_checkpoint_file,
                                      models::vit_presets, "classify", convert_vit, inspect_vit, setup_eval}};

}  // namespace
}  // namespace moh::cli
