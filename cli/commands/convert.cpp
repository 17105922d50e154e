// moh convert: a dense LLaMA folder becomes a MoH folder with the same weights (paper, section 3.4).
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/commands/dit_commands.h"
#include "cli/commands/export_model.h"
#include "cli/commands/vit_commands.h"
#include "cli/progress.h"
#include "moh/io/gguf.h"
#include "moh/io/model_folder.h"
#include "moh/models/conversion.h"
#include "moh/models/llama.h"
#include "moh/text/tokenizer.h"

namespace moh::cli {
namespace {

struct Options {
  std::string preset, weights = "auto";
  std::string in, out, export_to, router = "norm", straight_through = "selected", select = "head", shared_by = "first";
  std::string budget = "uniform", data;
  bool fit_router = false;
  double activated = 0.75, beta = 0.01;
  std::optional<double> shared;
  std::optional<std::int64_t> top_k;
  models::Calibration calibration;
};

bool needs_text(const Options& options) {
  return options.shared_by == "importance" || options.budget == "global" || options.fit_router;
}

// The routers' matrices of a two-stage model: random, or as calibration fits wg.
void add_routers(const Context& context, const Options& options, const models::LlamaConfig& config,
                 const models::HeadStatistics& statistics, io::NamedTensors& tensors) {
  const at::ScalarType dtype = tensors.front().second.scalar_type();
  const at::Generator generator = at::detail::createCPUGenerator(context.seed);
  for (const auto& spec : models::llama_parameters(config)) {
    const auto router = spec.name.find("self_attn.wg");
    if (router == std::string::npos) continue;
    at::Tensor weight = at::empty(spec.shape, at::TensorOptions(at::kFloat));
    weight.normal_(0.0, config.initializer_range, generator);
    if (options.fit_router) {
      const std::string layer = spec.name.substr(std::string("model.layers.").size());
      weight = spec.name.ends_with(".wg.weight") ? models::fit_router(config, std::stoll(layer), statistics)
                                                 : at::zeros_like(weight);
    }
    tensors.emplace_back(spec.name, weight.to(dtype));
  }
}

// How many heads, which of them are shared, and what the router should look at: as asked for.
models::Llama make_moh(const Context& context, const Options& options, models::LlamaConfig config,
                       io::NamedTensors tensors) {
  const std::int64_t heads = config.num_attention_heads;
  const std::int64_t group = options.select == "kv-group" ? heads / config.num_key_value_heads : 1;
  const auto division = [&](double activated) {
    return models::make_moh_config(config.num_hidden_layers, heads, activated, options.shared, options.top_k,
                                   options.router, group);
  };
  config.moh = division(options.activated);
  layers::parse_name(options.select, config.moh->select, "convert", "--select");
  config.moh->beta = options.beta;
  layers::parse_name(options.straight_through, config.moh->straight_through, "convert", "--straight-through");
  // In the authors' form uniform scores make every gate 1, so a new router starts near the dense model.
  if (options.router == "two-stage") config.moh->gates = layers::GateForm::kAuthors;

  models::HeadStatistics statistics;
  std::optional<data::TokenStream> text;
  models::Calibration calibration = options.calibration;
  if (needs_text(options)) {
    MOH_CHECK(!options.data.empty(),
              "[convert] --shared-by importance, --budget global and --fit-router measure heads "
              "on text: name it by --data");
    const auto tokenizer = text::load_tokenizer(options.in);
    text = data::TokenStream::open(options.data, tokenizer.get(), config.vocab_size);
    calibration.text = &*text;
    models::LlamaConfig dense = config;
    dense.moh.reset();
    for (auto& [name, tensor] : tensors) tensor = tensor.clone();  // out of the mapped file: calibration may scale them
    models::Llama model(dense, tensors);
    context.say(fmt::format("measuring the heads on {} windows of {}", calibration.windows, options.data));
    statistics = models::measure_heads(model, config, calibration);
    if (options.shared_by == "importance") config.moh->head_order = models::importance_order(statistics, group);
    if (options.fit_router && options.router == "norm") models::calibrate_router(model, config, statistics);
  }
  if (options.budget == "global") {
    MOH_CHECK(options.router == "norm",
              "[convert] --budget global measures the heads that the router chooses, and a "
              "two-stage router has to be trained first; use --router norm");
    io::NamedTensors fp32;
    for (const auto& [name, tensor] : tensors) fp32.emplace_back(name, tensor.to(at::kFloat));
    models::Llama model(config, std::move(fp32));
    Progress progress("convert");
    const std::int64_t shared = config.moh->shared_heads[0];
    const auto shared_of = [&](std::int64_t active) {
      if (options.top_k) return active - std::min(active, *options.top_k);
      if (options.shared) return std::min(active, shared);
      return division(static_cast<double>(active) / static_cast<double>(heads)).shared_heads[0];
    };
    models::budget_heads(model, options.activated, shared_of, calibration, [&](double done) { progress.update(done); });
    progress.finish();
    config.moh = model.config().moh;
  }
  if (options.router == "two-stage") add_routers(context, options, config, statistics, tensors);
  models::check_llama_config(config, "convert");
  return models::Llama(config, std::move(tensors));
}

int convert(const Context& context, const Options& options) {
  MOH_CHECK(context.torch_device().is_cpu(), "[convert] runs on the CPU alone; leave --device out");
  if (!options.export_to.empty()) return export_model(context, options.in, options.out);
  if (is_vit_checkpoint(options.in)) {
    return convert_vit(context, options.in, options.out, options.preset, options.weights);
  }
  if (is_dit_folder(options.in) || is_dit_checkpoint(options.in)) {
    return convert_dit(context, options.in, options.out, options.weights);
  }
  // A checkpoint file that was none of the above: what the command was asked to make a folder of.
  MOH_CHECK(
      !std::filesystem::is_regular_file(options.in) || io::find_gguf(options.in), "[convert] ", options.in,
      " is neither a GGUF file nor the checkpoint of a MoH-ViT or DiT (it has no tensor `patch_embed1.proj.weight` "
      "or `x_embedder.proj.weight`); a language model is converted as a Hugging Face folder");
  io::ModelFolder files = io::load_model(options.in);
  models::LlamaConfig dense =
      models::parse_llama_config(files.config, files.described_by, models::read_as(context.read_as));
  MOH_CHECK(!std::filesystem::exists(options.out + "/model.safetensors"), "[convert] ", options.out,
            " holds a model already; choose another folder");
  const bool was_moh = dense.moh.has_value();
  // An official MoH folder becomes one that says so in config.json; its weights and heads stay.
  if (was_moh) dense.source.erase("auto_map");
  io::NamedTensors tensors = std::move(files.tensors);
  io::check_finite(tensors, options.in);
  const models::Llama model =
      was_moh ? models::Llama(dense, std::move(tensors)) : make_moh(context, options, dense, std::move(tensors));
  model.save(options.out);
  io::copy_companions(options.in, options.out);

  const models::LlamaConfig& config = model.config();
  Json layers = Json::array();
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    Json layer = {
        {"heads", config.num_attention_heads}, {"shared_heads", config.shared_heads(i)}, {"top_k", config.top_k(i)}};
    if (!config.moh->head_order.empty()) layer["head_order"] = config.moh->head_order[i];
    layers.push_back(layer);
  }
  Json line = Json::object();
  line["parameters"] = model.num_parameters();
  line["activated"] = config.activated_share();
  line["layers"] = layers;
  context.emit(line);
  context.say(
      fmt::format("{}: {} parameters, {:.1f} % of the heads active (layer 0: {} shared + {} of {} routed), router "
                  "{}{}",
                  options.out, model.num_parameters(), 100 * config.activated_share(), config.shared_heads(0),
                  config.top_k(0), config.num_attention_heads - config.shared_heads(0), config.moh->router.name(),
                  was_moh ? "; it was a MoH model already, its heads stay as they were" : ""));
  return 0;
}

const Registered registered{
    {"convert", "turn a dense model folder into a MoH one", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option(
              "in", options->in,
              "dense Hugging Face folder of the LLaMA family, an authors' MoH one, or a MoH-ViT or DiT checkpoint file")
           ->required();
       app.add_option("out", options->out, "new MoH folder")->required();
       app.add_option("--preset", options->preset,
                      "configuration of a vision checkpoint (.pth, .safetensors) whose shapes leave it open");
       app.add_option("--weights", options->weights, "which of a checkpoint's weights: ema, model, auto (ema if there)")
           ->check(CLI::IsMember({"auto", "ema", "model"}));
       app.add_option("--activated", options->activated, "share of the heads that a token uses");
       app.add_option("--shared", options->shared,
                      "share of all heads that are always on (default: all active heads but a quarter of all)");
       app.add_option("--top-k", options->top_k, "routed heads a token uses; instead of --shared");
       app.add_option("--router", options->router, "norm: parameter-free, by query norm; two-stage: trained")
           ->check(CLI::IsMember({"norm", "two-stage"}));
       app.add_option("--beta", options->beta, "weight of the load-balance loss in tuning");
       app.add_option("--export", options->export_to,
                      "hf: write the model, dense or MoH, as it is, for Python's transformers (a MoH model with "
                      "trust_remote_code)")
           ->check(CLI::IsMember({"hf"}))
           ->excludes(app.get_option("--activated"), app.get_option("--shared"), app.get_option("--top-k"),
                      app.get_option("--router"));
       app.add_option("--straight-through", options->straight_through,
                      "scores that get a gradient: selected heads', all (at the price of computing all heads), none")
           ->check(CLI::IsMember({"selected", "all", "none"}));
       app.add_option("--select", options->select,
                      "what the router takes or leaves: head, or kv-group: all query heads of a KV head together")
           ->check(CLI::IsMember({"head", "kv-group"}));
       app.add_option("--shared-by", options->shared_by,
                      "shared heads: first, or importance: those whose gates the loss on --data depends on most")
           ->check(CLI::IsMember({"first", "importance"}));
       app.add_option(
              "--budget", options->budget,
              "uniform: the same number of heads in every layer; global: more where the loss on --data needs them")
           ->check(CLI::IsMember({"uniform", "global"}));
       app.add_flag(
           "--fit-router", options->fit_router,
           "router that begins with the importance of heads on --data: norm: queries and keys are scaled against "
           "each other, which leaves attention as it is; two-stage: fitted instead of random");
       app.add_option("--data", options->data, "calibration text or token ids for these");
       app.add_option("--calibration-windows", options->calibration.windows, "windows of --data that are read");
       app.add_option("--calibration-sequence", options->calibration.sequence,
                      "tokens of such a window; 0: the model's context, at most 512");
       return [options, &context] { return convert(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
