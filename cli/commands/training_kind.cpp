#include "cli/commands/training_kind.h"

#include <fmt/format.h>

#include <filesystem>

#include "cli/processes.h"
#include "cli/progress.h"
#include "moh/io/checkpoint.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

namespace fs = std::filesystem;

std::string format_rate(double rate, const std::string& unit) {
  return fmt::format("{:.{}f} {}/s", rate, rate < 100 ? 1 : 0, unit);
}

std::string format_line(const Json& line, const std::string& unit) {
  std::string text = fmt::format("step {}", line["step"].get<std::int64_t>());
  const auto add = [&](const std::string& key, const char* label, int digits) {
    if (line.contains(key)) text += fmt::format(", {} {:.{}f}", label, line[key].get<double>(), digits);
  };
  add("loss", "loss", 4);
  add("distill_loss", "distill", 4);
  add("load_balance_loss", "balance", 4);
  add("grad_norm", "grad", 3);
  if (line.contains("valid_perplexity")) {
    add("valid_perplexity", "valid ppl", 4);
  } else {
    add("valid_loss", "valid loss", 4);
  }
  add("valid_top1", "valid top-1", 2);
  if (line.contains("loader_share")) {
    text += fmt::format(", waited for pictures {:.1f} %", 100 * line["loader_share"].get<double>());
  }
  const std::string rate = unit + "_per_second";
  if (line.contains(rate)) text += ", " + format_rate(line[rate].get<double>(), unit);
  return text;
}

}  // namespace

std::vector<TrainingKind>& training_kinds() {
  static std::vector<TrainingKind> kinds;
  return kinds;
}

Json with_sections(Json config, const Json& sections, const std::string& preset) {
  for (const char* section : {"model", "moh"}) {
    const auto found = sections.find(section);
    if (found == sections.end()) continue;
    const bool is_moh = std::string_view(section) == "moh";
    MOH_CHECK(!is_moh || config.contains("moh"), "[train] preset ", preset, " is dense; --moh.KEY wants a moh- preset");
    Json& target = is_moh ? config["moh"] : config;
    for (const auto& item : found->items()) target[item.key()] = item.value();
  }
  return config;
}

std::string open_training(const Context& context, bool resume, const std::string& out, const Json& given_run,
                          const Json& given_train, Json& run, train::TrainConfig& config) {
  MOH_CHECK(!out.empty(), "[train] --out DIR is missing: where should the model go?");
  const std::string record = out + "/run.json";
  std::string checkpoint;
  if (context.dtype != "auto") config.dtype = context.dtype;
  config.seed = static_cast<std::int64_t>(context.seed);
  if (resume) {
    MOH_CHECK(fs::exists(record), "[train] ", out, " has no run.json, so there is nothing to resume");
    const Json saved = parse_json(io::read_file(record, 1 << 20), record);
    MOH_CHECK(saved.is_object() && saved.contains("run") && saved.contains("train"), "[train] ", record,
              " is damaged: `run` or `train` is missing");
    run = saved["run"];
    from_json(saved["train"], config, record);
    const auto newest = [&] {
      std::vector<std::string> incomplete;
      const std::string found = train::newest_checkpoint(out, &incomplete);
      MOH_CHECK(!found.empty() || incomplete.empty(), "[train] no checkpoint of ", out, " is whole; the newest, ",
                incomplete.empty() ? "" : incomplete.front(), "; begin anew with another --out");
      for (const std::string& why : incomplete) context.say("passed over an incomplete checkpoint, " + why);
      return found;
    };
    checkpoint = group().from_first(newest, "newest checkpoint");
  } else {
    MOH_CHECK(!fs::exists(out + "/checkpoints"), "[train] ", out,
              " holds a training run already; use --resume to go on, or another --out");
  }
  if (const auto section = context.sections.find("train"); section != context.sections.end()) {
    from_json(*section, config, "train");
  }
  from_json(given_train, config, "train");
  run.update(given_run);
  train::check_train_config(config);
  return checkpoint;
}

int run_training(const Context& context, const char* command, train::TrainConfig config, train::Task& task,
                 const std::string& out, const std::string& checkpoint, const Json& run, const Json& model) {
  Progress progress(command);
  std::string last_line;
  train::Trainer trainer(config, task, out,
                         {.on_log =
                              [&](const Json& line) {
                                context.emit(line);
                                last_line = format_line(line, task.unit());
                                if (line.contains("valid_loss")) progress.note(last_line);
                              },
                          .on_step =
                              [&](std::int64_t step, std::int64_t steps, double rate) {
                                progress.update(static_cast<double>(step) / static_cast<double>(steps),
                                                format_rate(rate, task.unit()) + "  " + last_line);
                              }},
                         group());
  if (!checkpoint.empty()) {
    trainer.resume(checkpoint);
    context.say("resumed from " + checkpoint);
  }
  Json record = Json::object();
  record["run"] = run;
  record["train"] = to_json(config);
  if (group().rank() == 0) {
    io::save_json(out + "/config.json", model);  // first: who finds run.json finds both
    io::save_json(out + "/run.json", record);
  }
  const bool done = trainer.run(interrupted);
  if (group().rank() == 0) progress.finish();
  if (!done) {
    context.say(fmt::format("interrupted; saved {}; go on with `moh {} --resume --out {}`",
                            train::newest_checkpoint(out), command, out));
    return kInterruptedStatus;
  }
  context.say("saved " + out);
  return 0;
}

}  // namespace moh::cli
