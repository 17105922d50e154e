// moh convert: a dense LLaMA folder becomes a MoH folder with the same weights (paper, section 3.4).
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/commands/vit_commands.h"
#include "moh/models/llama.h"

namespace moh::cli {
namespace {

struct Options {
  std::string preset, weights = "auto";
  std::string in, out, router = "norm", straight_through = "selected";
  double activated = 0.75, beta = 0.01;
  std::optional<double> shared;
  std::optional<std::int64_t> top_k;
};

int convert(const Context& context, const Options& options) {
  if (is_vit_checkpoint(options.in))
    return convert_vit(context, options.in, options.out, options.preset, options.weights);
  models::LlamaConfig config = models::parse_llama_config(io::load_config(options.in), options.in + "/config.json");
  io::NamedTensors tensors = io::load_tensors(options.in);
  const bool was_moh = config.moh.has_value();
  if (was_moh) {
    // An official MoH folder becomes one that says so in config.json; its weights and heads stay.
    config.source.erase("auto_map");
  } else {
    config.moh = models::make_moh_config(config.num_hidden_layers, config.num_attention_heads, options.activated,
                                         options.shared, options.top_k, options.router);
    config.moh->beta = options.beta;
    config.moh->straight_through = options.straight_through;
    if (options.router == "two-stage") {
      // In the authors' form uniform scores make every gate 1, so small random routers start near the dense model.
      config.moh->gates = "authors";
      const at::Generator generator = at::detail::createCPUGenerator(context.seed);
      for (const auto& spec : models::llama_parameters(config)) {
        if (spec.name.find("self_attn.wg") == std::string::npos) continue;
        at::Tensor weight = at::empty(spec.shape, at::TensorOptions(at::kFloat));
        weight.normal_(0.0, config.initializer_range, generator);
        tensors.emplace_back(spec.name, weight.to(tensors.front().second.scalar_type()));
      }
    }
  }
  models::check_llama_config(config, "convert");
  MOH_CHECK(!std::filesystem::exists(options.out + "/model.safetensors"), "[convert] ", options.out,
            " holds a model already; choose another folder");
  const models::Llama model(config, std::move(tensors));
  model.save(options.out);
  io::copy_companions(options.in, options.out);

  Json layers = Json::array();
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    layers.push_back(
        {{"heads", config.num_attention_heads}, {"shared_heads", config.shared_heads(i)}, {"top_k", config.top_k(i)}});
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
                  config.top_k(0), config.num_attention_heads - config.shared_heads(0), config.moh->router,
                  was_moh ? "; it was a MoH model already, its heads stay as they were" : ""));
  return 0;
}

const Registered registered{
    {"convert", "turn a dense model folder into a MoH one", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("in", options->in, "dense Hugging Face LLaMA folder, or a MoH-ViT checkpoint file")->required();
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
       app.add_option("--straight-through", options->straight_through,
                      "scores that get a gradient: selected heads', all (at the price of computing all heads), none")
           ->check(CLI::IsMember({"selected", "all", "none"}));
       return [options, &context] { return convert(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
