#include "cli/commands/training_kind.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "cli/processes.h"
#include "cli/progress.h"
#include "moh/distributed/membership.h"
#include "moh/io/checkpoint.h"
#include "moh/io/files.h"
#include "moh/train/schedule.h"

namespace moh::cli {
namespace {

namespace fs = std::filesystem;

std::string format_line(const Json& line) {
  std::string text = fmt::format("step {}", with_commas(line["step"].get<std::int64_t>()));
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
  return text;
}

// Fields that neither TrainConfig nor the run has; the remedy knows both.
void check_known(const Json& section, const Json& run) {
  std::vector<std::string> known = field_names<train::TrainConfig>();
  for (const auto& item : run.items()) known.push_back(item.key());
  for (const auto& item : section.items()) {
    if (std::find(known.begin(), known.end(), item.key()) != known.end()) continue;
    const std::string near = nearest_name(item.key(), known);
    fail("[train] unknown field `", item.key(), "`", near.empty() ? "" : ", did you mean `" + near + "`?");
  }
}

}  // namespace

std::vector<TrainingKind>& training_kinds() {
  static std::vector<TrainingKind> kinds;
  return kinds;
}

bool was_given(const Context& context, const Json& given_run, const char* field) {
  const auto section = context.sections.find("train");
  return given_run.contains(field) || (section != context.sections.end() && section->contains(field));
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
    // torchrun starts again with the arguments that began the run.
    const bool restarted = distributed::restarts_from_environment() > 0;
    for (const char* section : {"model", "moh"}) {
      MOH_CHECK(restarted || !context.given_sections.contains(section),
                "[train] a run that is resumed keeps its model: --", section, ".KEY is for a new one");
    }
    const Json defaults = run;
    MOH_CHECK(fs::exists(record), "[train] ", out, " has no run.json, so there is nothing to resume");
    const Json saved = parse_json(io::read_file(record, 1 << 20), record);
    MOH_CHECK(saved.is_object() && saved.contains("run") && saved.contains("train"), "[train] ", record,
              " is damaged: `run` or `train` is missing");
    run = saved["run"];
    Json saved_train = saved["train"];
    for (const char* moved : {"sequence", "illustrate_every"}) {  // runs of older versions keep them there
      if (!saved_train.is_object() || !saved_train.contains(moved)) continue;
      if (defaults.contains(moved) && !run.contains(moved)) run[moved] = saved_train[moved];
      saved_train.erase(moved);
    }
    for (const auto& item : defaults.items()) {
      if (!run.contains(item.key())) run[item.key()] = item.value();
    }
    from_json(saved_train, config, record);
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
    Json rest = Json::object();
    for (const auto& item : section->items()) (run.contains(item.key()) ? run : rest)[item.key()] = item.value();
    check_known(rest, run);
    from_json(rest, config, "train");
  }
  from_json(given_train, config, "train");
  run.update(given_run);
  train::check_train_config(config);
  return checkpoint;
}

namespace {

// What a new run should know before it begins.
void say_what_is_assumed(const Context& context, const train::TrainConfig& config) {
  if (config.warmup < config.steps) return;
  const train::Schedule schedule{config.lr,    config.final_lr,  config.warmup,
                                 config.steps, config.warmup_lr, config.epoch_steps};
  const double reached = schedule(config.steps - 1) / config.lr;
  context.say(
      fmt::format("warm-up takes {} of {} steps: the learning rate ends at {:.0f} % of --lr; --warmup {} would "
                  "leave time at the peak",
                  config.warmup, config.steps, 100 * reached, config.steps / 10));
}

std::string last_scores(const Json& line) {
  std::string text;
  const auto add = [&](const char* key, const char* label) {
    if (line.contains(key)) text += fmt::format(", {} {:.4f}", label, line[key].get<double>());
  };
  add("loss", "loss");
  add("valid_loss", "valid loss");
  add("valid_perplexity", "valid perplexity");
  add("valid_top1", "valid top-1");
  return text;
}

}  // namespace

int run_training(const Context& context, const char* command, train::TrainConfig config, train::Task& task,
                 const std::string& out, const std::string& checkpoint, const Json& run, const Json& model) {
  std::optional<Progress> progress;
  std::string last_line;
  Json last = Json::object();
  train::Trainer trainer(config, task, out,
                         {.on_log =
                              [&](const Json& line) {
                                context.emit(line);
                                last = line;
                                last_line = format_line(line);
                                if (!line.contains("valid_loss")) return;
                                const std::string rate = task.unit() + "_per_second";
                                const std::string pace = line.contains(rate)
                                                             ? ", " + format_rate(line[rate].get<double>(), task.unit())
                                                             : "";
                                progress->note(last_line + pace);
                              },
                          .on_step =
                              [&](const train::Pace& pace) {
                                std::string detail = format_rate(pace.items_per_second, task.unit());
                                if (!last_line.empty()) detail += "  " + last_line;
                                progress->update(static_cast<double>(pace.step) / static_cast<double>(pace.steps),
                                                 detail, pace.seconds_left);
                              }},
                         group());
  if (!checkpoint.empty()) {
    trainer.resume(checkpoint);
    if (trainer.step() >= config.steps && fs::exists(out + "/model.safetensors")) {
      context.say(fmt::format("{} is finished: {} of {} steps are made; --steps {} would go on", out,
                              with_commas(trainer.step()), with_commas(config.steps), 2 * config.steps));
      return 0;
    }
    context.say("resumed from " + checkpoint);
  } else {
    say_what_is_assumed(context, config);
  }
  Json record = Json::object();
  record["run"] = run;
  record["train"] = to_json(config);
  if (group().rank() == 0) {
    io::save_json(out + "/config.json", model);  // first: who finds run.json finds both
    io::save_json(out + "/run.json", record);
    progress.emplace(command);
    progress->update(0, trainer.step() == 0 ? "first step" : "first step since it was resumed");
  }
  const bool done = trainer.run(interrupted);
  progress.reset();
  if (!done) {
    context.say(fmt::format("interrupted; saved {}; go on with `moh {} --resume --out {}`",
                            train::newest_checkpoint(out), command, out));
    return kInterruptedStatus;
  }
  context.say(fmt::format("wrote {}: {} steps{}", out, with_commas(config.steps), last_scores(last)));
  return 0;
}

}  // namespace moh::cli
