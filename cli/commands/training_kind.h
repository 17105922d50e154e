// Kinds of models that `moh train` makes from scratch. Language models are the default kind (language_training.h);
// other kinds register themselves here and are found by the preset, or with --resume by the preset that run.json names.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/commands/language_training.h"
#include "moh/train/trainer.h"

namespace moh::cli {

struct TrainingKind {
  const char* name;  // heads the kind's flags in --help
  std::function<bool(const std::string& preset)> makes;
  Json (*defaults)();                        // of TrainConfig, as this kind has them
  std::vector<std::string> (*run_fields)();  // of the flags that kinds share, those that it reads
  // Adds flags that are not there yet, in a group called `name`; the result trains. Flags that kinds share (--preset,
  // --data, --out and those of TrainConfig) are there already: read them with given_fields.
  std::function<Run(CLI::App& app, Context& context)> setup;
};

std::vector<TrainingKind>& training_kinds();
struct RegisteredTrainingKind {
  explicit RegisteredTrainingKind(TrainingKind kind) { training_kinds().push_back(std::move(kind)); }
};

// Adds one flag for each field of Config that `app` has no flag for.
template <class Config>
void add_missing_fields(CLI::App& app, const std::string& group) {
  Config defaults;
  auto visit = [&](const char* name, const auto& value, const char* help) {
    std::string flag = name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    if (app.get_option_no_throw("--" + flag) != nullptr) return;
    using T = std::decay_t<decltype(value)>;
    auto* option = app.add_option_function<T>(
        "--" + flag, [](const T&) {}, help);
    option->default_str(Json(value).is_string() ? Json(value).get<std::string>() : Json(value).dump())->group(group);
  };
  defaults.fields(visit);
}

// What was given on the command line for the fields of Config.
template <class Config>
Json given_fields(const CLI::App& app) {
  Json given = Json::object();
  Config defaults;
  auto visit = [&](const char* name, const auto& value, const char*) {
    std::string flag = name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    const CLI::Option* option = app.get_option_no_throw("--" + flag);
    if (option != nullptr && option->count() > 0) given[name] = option->as<std::decay_t<decltype(value)>>();
  };
  defaults.fields(visit);
  return given;
}

// Flags of language models that Run has no field for would be ignored in silence.
template <class Run>
void refuse_language_flags(const CLI::App& app, const std::string& preset) {
  const auto own = field_names<Run>();
  const Json given = given_fields<LanguageRun>(app);
  for (const auto& item : given.items()) {
    MOH_CHECK(std::find(own.begin(), own.end(), item.key()) != own.end(), "[train] --", item.key(),
              " is for language models, not for preset `", preset, "`");
  }
}

// A preset's config.json with [model] and [moh] of --config and of the command line in it. Error: [moh] for a dense
// one.
Json with_sections(Json config, const Json& sections, const std::string& preset);

// True if the command line or [train] of --config says what a field of the run shall be.
bool was_given(const Context& context, const Json& given_run, const char* field);

// Where a run stands when it begins or goes on: `run` and `config` as run.json, [train] of --config and the flags say,
// in this order; [train] holds fields of both. Returns the checkpoint to go on from, "" for a new run. Errors: --out is
// missing or holds another run.
std::string open_training(const Context& context, bool resume, const std::string& out, const Json& given_run,
                          const Json& given_train, Json& run, train::TrainConfig& config);

// Runs the trainer with a progress bar; writes run.json and config.json (`model`) first. Returns the exit status: 0, or
// that of an interrupted run, which was saved and goes on with `moh COMMAND --resume`.
int run_training(const Context& context, const char* command, train::TrainConfig config, train::Task& task,
                 const std::string& out, const std::string& checkpoint, const Json& run, const Json& model);

}  // namespace moh::cli
