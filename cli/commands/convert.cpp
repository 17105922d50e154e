// moh convert: a dense LLaMA folder becomes a MoH folder with the same weights (paper, section 3.4).
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/commands/convert_options.h"
#include "cli/commands/export_model.h"
#include "cli/model_kind.h"
#include "cli/progress.h"
#include "moh/base/activity.h"
#include "moh/convert/recipe.h"
#include "moh/convert/vocabulary.h"
#include "moh/io/companions.h"
#include "moh/io/gguf.h"
#include "moh/io/model_folder.h"
#include "moh/layers/routers/linear.h"
#include "moh/layers/routers/linear_keys.h"
#include "moh/models/llama.h"
#include "moh/text/tokenizer.h"

namespace moh::cli {
namespace {

// Rows for the pieces of another tokenizer; heads stay as they are.
int grow(const Context& context, const ConvertOptions& options) {
  MOH_CHECK(!options.tokenizer.empty(), "[convert] --vocabulary needs --tokenizer, the folder of the larger tokenizer");
  MOH_CHECK(!std::filesystem::exists(options.out + "/model.safetensors"), "[convert] ", options.out,
            " holds a model already; choose another folder");
  const auto model = models::Llama::load(options.in, std::nullopt, models::read_as(context.read_as));
  const auto old = text::load_tokenizer(options.in), grown = text::load_tokenizer(options.tokenizer);
  const std::int64_t size = std::max(options.vocabulary, grown->vocab_size());
  const auto larger = convert::grow_vocabulary(model, *old, *grown, size);
  larger.save(options.out);
  io::copy_companions(options.tokenizer, options.out);
  context.emit({{"parameters", larger.num_parameters()}, {"vocabulary", size}});
  context.say(fmt::format("wrote {}: {} parameters, a vocabulary of {} (before: {})", options.out,
                          with_commas(larger.num_parameters()), with_commas(size),
                          with_commas(model.config().vocab_size)));
  return 0;
}

void say_what_is_assumed(const Context& context, const ConvertOptions& options, const models::LlamaConfig& config) {
  const std::int64_t heads = config.num_attention_heads;
  const double asked = options.activated, got = config.activated_share();
  if (!options.top_k && !config.moh->by_threshold() && std::abs(asked - got) > 0.005) {
    context.say(
        fmt::format("{:.1f} % of {} heads is no whole number: {:.1f} % are active", 100 * asked, heads, 100 * got));
  }
  if (!options.data.empty() || got >= 1) return;
  context.say(
      "as the paper does it, by the shapes alone: quality drops until the model is tuned; --recipe best --data TEXT keeps "
      "most of it without tuning");
}

int run(const CLI::App& app, const Context& context, const ConvertOptions& options) {
  MOH_CHECK(context.torch_device().is_cpu(), "[convert] runs on the CPU alone; leave --device out");
  const Interruptible interruptible(interrupted);
  if (!options.export_to.empty()) return export_model(context, options.in, options.out);
  if (options.vocabulary > 0 || !options.tokenizer.empty()) {
    refuse_other_kinds(options.in, "convert");
    return grow(context, options);
  }
  if (const ModelKind* kind = kind_of(options.in)) {
    allow_only(app, {"--preset", "--weights"}, "", options.in, kind->name);
    return kind->convert(context, {options.in, options.out, options.preset, options.weights});
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
  const models::Llama model = was_moh ? models::Llama(dense, std::move(tensors))
                              : options.router == "linear"
                                  ? convert_linear(context, options, dense, std::move(tensors))
                                  : convert_as_paper(context, options, dense, std::move(tensors));
  model.save(options.out);
  io::copy_model_files(options.in, options.out);
  std::filesystem::remove_all(options.out + "/conversion");  // what a stopped conversion would have gone on from

  const models::LlamaConfig& config = model.config();
  Json layers = Json::array();
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    Json layer = {{"heads", config.num_attention_heads}, {"shared_heads", config.shared_heads(i)}};
    if (config.moh->by_threshold()) {
      layer["threshold"] = layers::layer_threshold(config.moh->own, i);
    } else {
      layer["top_k"] = config.top_k(i);
    }
    if (!config.moh->head_order.empty()) layer["head_order"] = config.moh->head_order[i];
    layers.push_back(layer);
  }
  Json line = Json::object();
  line["parameters"] = model.num_parameters();
  line["activated"] = config.activated_share();
  line["layers"] = layers;
  context.emit(line);
  if (!was_moh) say_what_is_assumed(context, options, config);
  context.say(fmt::format("wrote {}: {} parameters, {:.1f} % of the heads active (layer 0: {}), router {}{}",
                          options.out, with_commas(model.num_parameters()), 100 * config.activated_share(),
                          config.heads_text(0), config.moh->router.name(),
                          was_moh ? "; it was a MoH model already, its heads stay as they were" : ""));
  return 0;
}

// The best recipe's choices, but for those that were typed.
void set_best(const CLI::App& app, ConvertOptions& options) {
  const auto set = [&](const char* name, auto& value, const auto& best) {
    if (app.get_option(name)->count() == 0) value = best;
  };
  set("--router", options.router, "linear");
  set("--choose", options.choose, "threshold");
  set("--mean-heads", options.mean_heads, true);
  set("--refit", options.refit, true);
  set("--leading-tokens", options.leading_tokens, std::int64_t{1});
  set("--budget", options.budget, "global");
  set("--beta", options.beta, 0.0);
  set("--calibration-windows", options.calibration.windows, std::int64_t{32});
}

const Registered registered{
    {"convert", "turn a dense model folder into a MoH one", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<ConvertOptions>();
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
       app.add_option("--recipe", options->recipe,
                      "paper: its form unless other options say more; best: --router linear --choose threshold "
                      "--mean-heads --refit --leading-tokens 1, which keeps most of the quality without training")
           ->check(CLI::IsMember({"paper", "best"}));
       app.add_option("--router", options->router,
                      "norm: parameter-free, by query norm; two-stage: trained; linear: fitted to --data")
           ->check(CLI::IsMember({"norm", "two-stage", "linear"}));
       app.add_option("--choose", options->choose,
                      "linear router: top-k: a number of heads in every layer; threshold: the number varies by token")
           ->check(CLI::IsMember({"top-k", "threshold"}));
       app.add_flag("--weighted", options->weighted, "linear router: a selected head counts by its score instead of 1");
       app.add_flag("--mean-heads,!--no-mean-heads", options->mean_heads,
                    "linear router: a head that is left out adds its mean output");
       app.add_flag("--refit,!--no-refit", options->refit,
                    "linear router: output projections anew, so that the heads that run stand in for the others");
       app.add_option("--leading-tokens", options->leading_tokens,
                      "linear router: so many tokens at the beginning of a sequence use all heads");
       app.add_option("--beta", options->beta, "weight of the load-balance loss in tuning");
       app.add_option("--export", options->export_to,
                      "hf: write the model, dense or MoH, as it is, for Python's transformers (a MoH model with "
                      "trust_remote_code)")
           ->check(CLI::IsMember({"hf"}))
           ->excludes(app.get_option("--activated"), app.get_option("--shared"), app.get_option("--top-k"),
                      app.get_option("--router"));
       app.add_option("--tokenizer", options->tokenizer,
                      "a larger tokenizer that extends the model's: rows for its pieces are added, each the mean of "
                      "those of the old pieces that it splits into; nothing else is done")
           ->excludes(app.get_option("--activated"), app.get_option("--shared"), app.get_option("--top-k"),
                      app.get_option("--router"), app.get_option("--export"));
       app.add_option("--vocabulary", options->vocabulary, "with --tokenizer: rows in all; default: its pieces")
           ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 31))
           ->needs(app.get_option("--tokenizer"));
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
              "uniform: the same number of heads in every layer; global: more where the loss on --data needs them, by the "
              "heads' scores; measured: by its loss, layer by layer and head by head (slow)")
           ->check(CLI::IsMember({"uniform", "global", "measured"}));
       app.add_flag(
           "--fit-router", options->fit_router,
           "router that begins with the importance of heads on --data: norm: queries and keys are scaled against "
           "each other, which leaves attention as it is; two-stage: fitted instead of random");
       app.add_option("--data", options->data,
                      "calibration text or token ids for these; several are read in turn, window by window")
           ->allow_extra_args(false);
       app.add_option("--statistics", options->statistics,
                      "linear router: folder for what was measured; conversions of the same model and text to other "
                      "shares begin from there");
       app.add_option("--calibration-windows", options->calibration.windows, "windows of --data that are read");
       app.add_option("--calibration-sequence", options->calibration.sequence,
                      "tokens of such a window; 0: the model's context, at most 512");
       return [options, &app, &context] {
         if (options->recipe == "best") set_best(app, *options);
         const auto stopped = [&] {
           if (!std::filesystem::exists(options->out + "/conversion")) throw Interrupted();
           context.say(options->out + "/conversion holds what was done; the same command goes on from there");
           return kInterruptedStatus;
         };
         try {
           return run(app, context, *options);
         } catch (const convert::Stopped&) {
           return stopped();
         } catch (const Interrupted&) {
           return stopped();
         }
       };
     }}};

}  // namespace
}  // namespace moh::cli
