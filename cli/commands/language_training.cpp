#include "cli/commands/language_training.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "cli/commands/training_kind.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "cli/token_mix.h"
#include "moh/base/activity.h"
#include "moh/io/files.h"
#include "moh/ops/autocast.h"
#include "moh/text/tokenizer.h"
#include "moh/train/language_task.h"

namespace moh::cli {
namespace {

struct Options {
  Json given_run = Json::object(), given_train = Json::object();
  bool resume = false;
};

// The configuration of a new model: preset, then tokenizer, then [model] and [moh] of --config and of the command line.
models::LlamaConfig new_model_config(const LanguageRun& run, const text::Tokenizer* tokenizer, const Json& sections) {
  models::LlamaConfig config = models::llama_preset(run.preset);
  if (tokenizer != nullptr) {
    config.vocab_size = std::max<std::int64_t>(tokenizer->vocab_size(), 1);
    config.bos_token_id = tokenizer->bos_id();
    config.eos_token_id.clear();
    if (tokenizer->eos_id() >= 0) config.eos_token_id.push_back(tokenizer->eos_id());
  }
  Json json = models::llama_config_json(config);
  if (const auto model = sections.find("model"); model != sections.end()) {
    for (const auto& item : model->items()) {
      if (!json.contains(item.key())) {
        std::vector<std::string> known;
        for (const auto& key : json.items()) known.push_back(key.key());
        const std::string near = nearest_name(item.key(), known);
        fail("[model] unknown field `", item.key(), "`", near.empty() ? "" : ", did you mean `" + near + "`?");
      }
      json[item.key()] = item.value();
    }
    if (!model->contains("head_dim") && json["num_attention_heads"].is_number_integer() &&
        json["hidden_size"].is_number_integer() && json["num_attention_heads"] > 0) {
      json["head_dim"] = json["hidden_size"].get<std::int64_t>() / json["num_attention_heads"].get<std::int64_t>();
    }
    if (!model->contains("num_key_value_heads") && model->contains("num_attention_heads")) {
      json["num_key_value_heads"] = json["num_attention_heads"];
    }
  }
  json.erase("moh");
  models::LlamaConfig sized = models::parse_llama_config(json, "model");
  if (config.moh) {
    sized.moh = models::make_moh_config(sized.num_hidden_layers, sized.num_attention_heads,
                                        run.activated > 0 ? run.activated : 0.75, std::nullopt, std::nullopt,
                                        config.moh->router);
  } else {
    MOH_CHECK(run.activated == 0 || run.activated == 1, "[train] preset ", run.preset,
              " is dense; --activated wants a moh- preset");
  }
  if (const auto moh = sections.find("moh"); moh != sections.end()) {
    Json patched = models::llama_config_json(sized);
    for (const auto& item : moh->items()) patched["moh"][item.key()] = item.value();
    sized = models::parse_llama_config(patched, "moh");
  }
  sized.source = Json::object();  // a model of our own: config.json is written anew
  return sized;
}

int train(const Context& context, const Options& options, bool from_preset) {
  std::optional<Interruptible> preparing;  // later the trainer stops, and saves
  if (group().alone()) preparing.emplace(interrupted);
  train::TrainConfig config;
  Json run_json = to_json(LanguageRun());
  const std::string checkpoint = open_training(context, options.resume, options.given_run.value("out", ""),
                                               options.given_run, options.given_train, run_json, config);
  LanguageRun run;
  from_json(run_json, run, "train");
  const Json& sections = context.sections;
  MOH_CHECK(!run.data.empty(), "[train] --data is missing: a text file, a folder of *.txt, or .npy/.bin token ids");

  // Tokenizer: of the model to tune, or the one named; text without one is read as bytes.
  const std::string tokenizer_folder = from_preset ? run.tokenizer : run.model;
  std::shared_ptr<const text::Tokenizer> tokenizer =
      tokenizer_folder.empty() ? text::bytes_tokenizer() : text::load_tokenizer(tokenizer_folder);

  const auto load_model = [&]() -> models::Llama {
    if (!checkpoint.empty()) return models::Llama::load(checkpoint, at::kFloat);
    if (!from_preset) return models::Llama::load(run.model, at::kFloat, models::read_as(context.read_as));
    if (options.resume) {  // stopped before the first checkpoint: the same model anew, whose sizes the folder keeps
      models::LlamaConfig same = models::parse_llama_config(io::load_config(run.out), run.out + "/config.json");
      same.source = Json::object();
      return models::Llama::initialize(same, static_cast<std::uint64_t>(config.seed));
    }
    // Text without a tokenizer is bytes, a vocabulary of 256; token ids without one fit the preset's vocabulary.
    const bool is_ids = run.data.ends_with(".npy") || run.data.ends_with(".bin");
    const auto model_config =
        new_model_config(run, run.tokenizer.empty() && is_ids ? nullptr : tokenizer.get(), sections);
    return models::Llama::initialize(model_config, static_cast<std::uint64_t>(config.seed));
  };
  models::Llama model = load_model();
  io::check_finite(model.parameters(), from_preset ? run.out : run.model);
  model.to(context.torch_device());
  const std::int64_t context_size = model.config().max_position_embeddings;
  MOH_CHECK(run.sequence >= 1, "[train] sequence must be at least 1, got ", run.sequence);
  if (!was_given(context, options.given_run, "sequence") && !options.resume) {
    run.sequence = std::min(run.sequence, context_size);
  }

  const std::int64_t vocabulary = model.config().vocab_size;
  data::TokenMix mix = open_token_mix(run.data, tokenizer.get(), vocabulary);
  std::optional<data::TokenStream> valid;
  if (!run.valid.empty()) valid = data::TokenStream::open(run.valid, tokenizer.get(), vocabulary);
  std::optional<models::Llama> teacher;
  if (!run.distill.empty()) {
    teacher = models::Llama::load(run.distill, at::kFloat, models::ReadAs::kAuto);
    io::check_finite(teacher->parameters(), run.distill);
    teacher->to(context.torch_device());
  }

  context.say(fmt::format("{} parameters, {:.1f} % of the heads active, {} training tokens",
                          with_commas(model.num_parameters()), 100 * model.config().activated_share(),
                          with_commas(mix.size())));
  train::LanguageTaskOptions task_options;
  task_options.sequence = run.sequence;
  task_options.seed = static_cast<std::uint64_t>(config.seed);
  task_options.autocast = ops::autocast_type(config.dtype);
  task_options.distill_weight = run.distill_weight;
  task_options.distill_hidden = run.distill_hidden;
  task_options.random_share_min = run.random_share_min;
  task_options.random_share_max = run.random_share_max;
  task_options.documents = run.documents;
  task_options.recompute = config.recompute;
  task_options.loss_rows = run.loss_rows;
  task_options.valid_windows = run.valid_windows;
  (from_preset ? task_options.tokenizer : task_options.companions) = tokenizer_folder;
  train::LanguageTask task(std::move(model), std::move(mix), std::move(valid), std::move(teacher), task_options);

  preparing.reset();
  return run_training(context, from_preset ? "train" : "tune", config, task, run.out, checkpoint, to_json(run),
                      models::llama_config_json(task.model().config()));
}

}  // namespace

Run setup_language_training(CLI::App& app, Context& context, bool from_preset) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> leave_out = {"model"};
  if (!from_preset) {
    leave_out.insert(leave_out.end(), {"preset", "tokenizer", "activated"});
    app.add_option_function<std::string>(
        "model", [options](const std::string& folder) { options->given_run["model"] = folder; },
        "model folder, dense or MoH");
  } else {
    leave_out.insert(leave_out.end(), {"distill", "distill_weight", "distill_hidden"});
  }
  add_fields<LanguageRun>(app, "train", options->given_run, leave_out, "run");
  add_fields<train::TrainConfig>(app, "train", options->given_train);
  app.add_flag("--resume", options->resume, "go on from the newest checkpoint of --out");
  return [options, &context, from_preset] {
    if (!options->resume) {
      const char* wanted = from_preset ? "preset" : "model";
      MOH_CHECK(options->given_run.contains(wanted), "[train] ",
                from_preset ? "--preset is missing; `moh info` lists the presets" : "MODEL is missing: a model folder");
    }
    return train(context, *options, from_preset);
  };
}

}  // namespace moh::cli
