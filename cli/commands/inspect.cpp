// moh inspect: what a model is, what it costs, and which heads its tokens use.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/layer_heads.h"
#include "cli/model_kind.h"
#include "cli/progress.h"
#include "cli/report/report.h"
#include "cli/run_time_heads.h"
#include "moh/eval/head_load.h"
#include "moh/io/files.h"
#include "moh/io/model_folder.h"
#include "moh/models/llama_cost.h"
#include "moh/train/memory.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, data, html;
  std::int64_t sequence = 0, max_windows = 16;
  int processes = 0;
  RunTimeHeads heads;
};

// Rows of the head-load picture; shared heads are null, which the report draws apart.
Json load_heatmap(const models::LlamaConfig& config, const eval::HeadLoad& load) {
  Json values = Json::array(), rows = Json::array(), columns = Json::array();
  for (std::int64_t head = 0; head < config.num_attention_heads; ++head) columns.push_back(std::to_string(head));
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    rows.push_back(std::to_string(layer));
    Json row = Json::array();
    for (std::int64_t head = 0; head < config.num_attention_heads; ++head) {
      row.push_back(config.is_shared(layer, head) ? Json(nullptr) : Json(load.share[layer][head]));
    }
    values.push_back(row);
  }
  return {{"type", "heatmap"}, {"title", "Share of tokens that select each head"},
          {"x_label", "head"}, {"y_label", "layer"},
          {"x", columns},      {"y", rows},
          {"values", values}};
}

// The last part of a path.
std::string short_name(const std::string& model) {
  const auto path = std::filesystem::path(model).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

// config.json names the weights' type, in one of two keys.
bool half_weights(const Json& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (const auto found = config.find(key); found != config.end()) return *found == "bfloat16" || *found == "float16";
  }
  return false;
}

// Of training by so many processes.
std::vector<std::pair<std::string, std::int64_t>> memory_of(const models::LlamaConfig& config, std::int64_t parameters,
                                                            int processes) {
  const std::int64_t largest = config.vocab_size * config.hidden_size;
  return train::training_memory(parameters, largest, processes);
}

// Measured on the data; of a dense model every head is used by every token, which needs no measuring.
eval::HeadLoad load_of(const Context& context, const Options& options, const models::LlamaConfig& config) {
  if (!config.moh) {
    context.say(options.model + " is dense: every token uses every head, so --data was not read");
    eval::HeadLoad load;
    load.share.assign(config.num_hidden_layers, std::vector<double>(config.num_attention_heads, 1.0));
    return load;
  }
  models::Llama model = models::Llama::load(options.model, context.weights_type(), models::read_as(context.read_as));
  model.to(context.torch_device());
  options.heads.apply(model.mutable_config());
  io::check_finite(model.parameters(), options.model);
  const auto tokenizer = text::load_tokenizer(options.model);
  const auto stream = data::TokenStream::open(options.data, tokenizer.get(), config.vocab_size);
  return eval::head_load(model, stream, options.sequence, options.max_windows);
}

std::vector<LayerHeads> layer_heads(const models::LlamaConfig& config, const std::optional<eval::HeadLoad>& load) {
  std::vector<LayerHeads> layers;
  for (std::int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    LayerHeads heads{.name = std::to_string(layer),
                     .shared = {},
                     .selected = config.moh->by_threshold() ? "some" : std::to_string(config.top_k(layer)),
                     .load = {}};
    for (std::int64_t head = 0; head < config.num_attention_heads; ++head) {
      heads.shared.push_back(config.is_shared(layer, head));
    }
    if (load) heads.load = load->share[layer];
    layers.push_back(std::move(heads));
  }
  return layers;
}

int inspect(const CLI::App& app, const Context& context, const Options& options) {
  const Interruptible interruptible(interrupted);
  if (const ModelKind* kind = kind_of(options.model)) {
    allow_only(app, {"--data", "--html"}, "", options.model, kind->name);
    return kind->inspect(context, {options.model, options.data, options.html});
  }
  const auto as = models::read_as(context.read_as);
  const bool is_folder = std::filesystem::exists(options.model);  // a file is told what it is
  models::LlamaConfig config =
      is_folder ? models::parse_llama_config(io::load_config(options.model), io::config_file(options.model), as)
                : models::llama_preset(options.model);
  options.heads.apply(config);
  const std::int64_t positions = options.sequence > 0 ? options.sequence : config.max_position_embeddings;
  const bool is_half = context.dtype == "auto" ? half_weights(config.source) : context.dtype != "fp32";
  const auto cost = models::llama_cost(config, positions, is_half ? 2 : 4);
  Json line = Json::object();
  line["model"] = options.model;
  line["parameters"] = cost.parameters;
  line["active_parameters"] = cost.active_parameters;
  line["activated"] = config.activated_share();
  line["context"] = positions;
  line["flops_per_token"] = cost.flops_per_token;
  line["dense_flops_per_token"] = cost.dense_flops_per_token;
  line["attention_share"] = cost.attention_share;
  line["kv_bytes_per_token"] = cost.kv_bytes_per_token;
  line["config"] = models::llama_config_json(config);

  std::vector<std::pair<std::string, std::int64_t>> memory;
  if (options.processes > 0) {
    std::int64_t total = 0;
    memory = memory_of(config, static_cast<std::int64_t>(cost.parameters), options.processes);
    for (const auto& [name, bytes] : memory) {
      line["training_memory"][name] = bytes;
      total += bytes;
    }
    memory.emplace_back("all", total);
    line["training_memory"]["all"] = total;
    line["training_memory"]["recomputed_layers_per_token"] = 4 * config.num_hidden_layers * config.hidden_size;
  }

  std::optional<eval::HeadLoad> load;
  if (!options.data.empty()) {
    MOH_CHECK(is_folder, "[inspect] --data needs a model folder, `", options.model, "` is a preset");
    load = load_of(context, options, config);
    line["head_load"] = load->share;
    line["head_load_tokens"] = load->tokens;
  }
  context.emit(line);

  const std::vector<std::pair<std::string, std::string>> facts = {
      {"layers", std::to_string(config.num_hidden_layers)},
      {"hidden size", std::to_string(config.hidden_size)},
      {"heads", fmt::format("{} query heads x {}, {} KV heads", config.num_attention_heads, config.head_dim,
                            config.num_key_value_heads)},
      {"vocabulary", with_commas(config.vocab_size)},
      {"router", config.moh ? config.moh->router.name() : "none (dense)"},
      {"heads active", fmt::format("{:.1f} %", 100 * config.activated_share())},
      {"parameters", with_commas(cost.parameters)},
      {"active parameters", with_commas(cost.active_parameters)},
      {"context", with_commas(positions) + " tokens"},
      {"FLOPs a token", with_unit(cost.flops_per_token)},
      {"of the dense model", with_unit(cost.dense_flops_per_token)},
      {"attention's share of that", fmt::format("{:.1f} %", 100 * cost.attention_share)},
      {"KV cache a token", with_commas(cost.kv_bytes_per_token) + " bytes"}};
  if (!context.json) {
    for (const auto& [name, value] : facts) context.say(fmt::format("{:<28} {}", name, value));
    for (const auto& [name, bytes] : memory) {
      context.say(fmt::format("{:<28} {:.2f} GB", "training: " + name, static_cast<double>(bytes) / 1e9));
    }
    if (!memory.empty()) {
      context.say(fmt::format("{:<28} activations; with --recompute {} bytes a token and those of one layer",
                              "training: besides", with_commas(4 * config.num_hidden_layers * config.hidden_size)));
    }
    if (config.moh) say_layer_heads(context, "layers", layer_heads(config, load));
  }
  if (!options.html.empty()) {
    Json report = Json::object();
    const bool is_moh = config.moh.has_value();
    report["title"] = fmt::format("{} model {}", is_moh ? "MoH" : "Dense", short_name(options.model));
    report["subtitle"] = is_folder ? options.model : "a preset";
    Json fact_list = Json::array();
    for (const auto& [name, value] : facts) fact_list.push_back({{"name", name}, {"value", value}});
    report["facts"] = fact_list;
    report["sections"] = Json::array();
    if (is_moh) {
      const std::int64_t group = config.num_attention_heads / config.num_key_value_heads;
      report["sections"].push_back(
          {{"heading", "Heads by layer"}, {"items", {layer_heads_picture("layer", group, layer_heads(config, load))}}});
    }
    if (load && is_moh) {
      report["sections"].push_back(
          {{"heading", "Head load by layer"},
           {"text", fmt::format("Measured on {} tokens of {}.", with_commas(load->tokens), options.data)},
           {"items", {load_heatmap(config, *load)}}});
    }
    io::write_file(options.html, render_report(report));
    context.say("wrote " + options.html);
  }
  return 0;
}

const Registered registered{
    {"inspect", "configuration, parameters, FLOPs, KV bytes, head load", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "model folder, preset, or DiT checkpoint")->required();
       app.add_option("--data", options->data, "measure the head load on this text or token file");
       app.add_option("--sequence", options->sequence, "tokens of context; 0: the model's");
       app.add_option("--max-windows", options->max_windows, "windows of --data at most");
       app.add_option("--processes", options->processes, "memory of each of so many that train it; 0: not said")
           ->check(CLI::Range(0, 1 << 16));
       options->heads.add_options(app, "--top-k,--moh-top-k");
       app.add_option("--html", options->html, "write a report");
       return [options, &app, &context] { return inspect(app, context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
