// moh train: a model from scratch by the name of a preset, language or vision, dense or MoH.
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

Run setup(CLI::App& app, Context& context) {
  const Run language = setup_language_training(app, context, /*from_preset=*/true);
  std::vector<Run> runs;
  for (const TrainingKind& kind : training_kinds()) runs.push_back(kind.setup(app, context));
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

const Registered registered{{"train", "train a new model from scratch", setup}};

}  // namespace
}  // namespace moh::cli
