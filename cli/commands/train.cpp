// moh train: a model from scratch by the name of a preset, language or vision, dense or MoH.
#include <algorithm>
#include <filesystem>

#include "cli/commands/language_training.h"
#include "cli/commands/training_kind.h"
#include "cli/processes.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

// The preset given, or with --resume that of the run.
std::string preset_of(const CLI::App& app) {
  const auto text = [&](const char* flag) {
    const CLI::Option* option = app.get_option(flag);
    return option->count() > 0 ? option->as<std::string>() : std::string();
  };
  if (app.get_option("--resume")->count() == 0) return text("--preset");
  const std::string record = text("--out") + "/run.json";
  if (!std::filesystem::exists(record)) return "";  // the kind that runs says so
  const Json saved = parse_json(io::read_file(record, 1 << 20), record);
  const Json run = saved.is_object() ? saved.value("run", Json::object()) : Json::object();
  return run.is_object() && run.contains("preset") && run["preset"].is_string() ? run["preset"].get<std::string>() : "";
}

// A flag of another kind would be ignored in silence.
void refuse_flags_of(const CLI::App& app, const std::string& kind, const std::string& preset) {
  for (const CLI::Option* option : app.get_options()) {
    MOH_CHECK(option->get_group() != kind || option->count() == 0, "[train] ", option->get_name(),
              " is not for preset `", preset, "`; it belongs to ", kind);
  }
}

// The preset on the command line, before anything is parsed.
std::string typed_preset(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].starts_with("--preset=")) return arguments[i].substr(9);
    if (arguments[i] == "--preset" && i + 1 < arguments.size()) return arguments[i + 1];
  }
  return "";
}

// --help with a preset: the defaults and the flags of its kind, and no other kind's.
void show_kind(CLI::App& app, const std::string& preset) {
  const auto& kinds = training_kinds();
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const auto& each) { return each.makes(preset); });
  const Json defaults = kind == kinds.end() ? to_json(train::TrainConfig()) : kind->defaults();
  const auto shared = kind == kinds.end() ? field_names<LanguageRun>() : kind->run_fields();
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    std::string field = option->get_lnames()[0];
    std::replace(field.begin(), field.end(), '-', '_');
    const std::string group = option->get_group();
    if (group == "train" && defaults.contains(field)) {
      const Json& value = defaults[field];
      option->default_str(value.is_string() ? value.get<std::string>() : value.dump());
    } else if (group == "run" && std::find(shared.begin(), shared.end(), field) == shared.end()) {
      option->group("");  // hidden
    }
    for (const TrainingKind& other : kinds) {
      if (group == other.name && (kind == kinds.end() || other.name != kind->name)) option->group("");
    }
  }
}

Run setup(CLI::App& app, Context& context) {
  const Run language = setup_language_training(app, context, /*from_preset=*/true);
  std::vector<Run> runs;
  for (const TrainingKind& kind : training_kinds()) runs.push_back(kind.setup(app, context));
  const std::string preset = typed_preset(context.arguments);
  const auto& typed = context.arguments;
  if (std::find(typed.begin(), typed.end(), "--help") != typed.end() && !preset.empty()) show_kind(app, preset);
  if (preset.empty())
    app.footer("Defaults are those of language models; `moh train --preset NAME --help` tells another kind's.");
  return with_processes(app, context, [&app, language, runs] {
    const std::string preset = preset_of(app);
    const auto& kinds = training_kinds();
    Run chosen = language;
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      if (!preset.empty() && kinds[i].makes(preset)) {
        chosen = runs[i];
      } else {
        refuse_flags_of(app, kinds[i].name, preset);
      }
    }
    return chosen();
  });
}

const Registered registered{{"train", "train a new model from scratch", setup, {"train", "model", "moh"}}};

}  // namespace
}  // namespace moh::cli
