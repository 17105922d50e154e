// moh report: a self-contained HTML page (cli/report/report.h) from a JSON description of tables, curves and pictures,
// or from training folders, whose curves then share their figures.
#include "cli/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>

#include "cli/command.h"
#include "moh/io/files.h"

namespace moh::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> in;
  std::string out = "report.html";
};

// A training folder's log.jsonl.
struct TrainingLog {
  std::string name;
  std::string unit = "tokens";
  std::vector<Json> lines;

  bool has(const std::string& key) const {
    return std::any_of(lines.begin(), lines.end(), [&](const Json& line) { return line.contains(key); });
  }
  Json last(const std::string& key) const {
    for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
      if (line->contains(key)) return line->at(key);
    }
    return nullptr;
  }
};

// "runs/a/" is called a; where two folders end alike, by their whole paths.
std::string name_of(const std::string& folder) {
  const fs::path path = fs::path(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

TrainingLog read_log(const std::string& folder) {
  const std::string file = folder + "/log.jsonl";
  MOH_CHECK(fs::exists(file), "[report] ", folder, " is no training folder: it has no log.jsonl");
  TrainingLog log;
  log.name = name_of(folder);
  std::istringstream text(io::read_file(file, std::int64_t{1} << 30));
  std::int64_t number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    const Json entry = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (text.eof() && !entry.is_object()) break;  // a run that is being written
    MOH_CHECK(entry.is_object() && entry.contains("step") && entry["step"].is_number(), "[report] ", file, ", line ",
              number, ": expected an object with `step`");
    log.lines.push_back(entry);
  }
  MOH_CHECK(!log.lines.empty(), "[report] ", file, " has no line yet");
  if (log.has("images")) log.unit = "images";
  return log;
}

Json series_of(const TrainingLog& log, const std::string& key, const std::string& name) {
  Json x = Json::array(), y = Json::array();
  for (const Json& line : log.lines) {
    if (!line.contains(key)) continue;
    x.push_back(line["step"]);
    y.push_back(line[key]);
  }
  return {{"name", name}, {"x", x}, {"y", y}};
}

// One figure with a line for every run that has logged `key`; validation values beside training ones are dashed.
void add_figure(Json& items, const std::vector<TrainingLog>& logs, const char* title, const std::string& key,
                const std::string& valid_key = "") {
  Json series = Json::array();
  for (const TrainingLog& log : logs) {
    if (log.has(key)) series.push_back(series_of(log, key, log.name));
    if (valid_key.empty() || !log.has(valid_key)) continue;
    Json valid = series_of(log, valid_key, log.name + ", validation");
    valid["dashed"] = true;
    series.push_back(valid);
  }
  if (series.empty()) return;
  items.push_back({{"type", "lines"}, {"title", title}, {"x_label", "step"}, {"series", series}});
}

Json describe_runs(const std::vector<std::string>& folders) {
  std::vector<TrainingLog> logs;
  std::set<std::string> names;
  bool alike = false;
  for (const std::string& folder : folders) {
    logs.push_back(read_log(folder));
    alike |= !names.insert(logs.back().name).second;
  }
  for (std::size_t i = 0; alike && i < logs.size(); ++i) logs[i].name = folders[i];

  Json rows = Json::array();
  for (const TrainingLog& log : logs) {
    rows.push_back({log.name, log.last("step"), log.last(log.unit), log.last("loss"), log.last("valid_loss"),
                    log.last(log.has("valid_top1") ? "valid_top1" : "valid_perplexity"), log.last("active_heads"),
                    log.last(log.unit + "_per_second")});
  }
  const bool has_top1 = std::any_of(logs.begin(), logs.end(), [](const auto& log) { return log.has("valid_top1"); });
  Json table = {{"type", "table"},
                {"columns",
                 {"run", "steps", logs[0].unit, "loss", "valid loss", has_top1 ? "valid top-1" : "valid perplexity",
                  "share of heads", logs[0].unit + "/s"}},
                {"rows", rows}};
  Json curves = Json::array(), heads = Json::array(), machine = Json::array();
  add_figure(curves, logs, "Loss", "loss", "valid_loss");
  add_figure(curves, logs, "Perplexity on the validation data", "valid_perplexity");
  add_figure(curves, logs, "Top-1 on the validation data", "valid_top1");
  add_figure(curves, logs, "Distillation loss", "distill_loss");
  add_figure(heads, logs, "Load-balance loss", "load_balance_loss");
  add_figure(heads, logs, "Share of the heads that tokens use", "active_heads");
  add_figure(machine, logs, "Learning rate", "lr");
  add_figure(machine, logs, "Norm of the gradient", "grad_norm");
  add_figure(machine, logs, "Tokens a second", "tokens_per_second");
  add_figure(machine, logs, "Images a second", "images_per_second");

  Json report = Json::object();
  report["title"] = logs.size() == 1 ? "Training of " + logs[0].name : fmt::format("{} trainings", logs.size());
  std::string list;
  for (const std::string& folder : folders) list += (list.empty() ? "" : ", ") + folder;
  report["subtitle"] = list;
  Json quality = Json::array({table});
  for (const Json& figure : curves) quality.push_back(figure);
  report["sections"] = {{{"heading", "Quality"}, {"items", quality}},
                        {{"heading", "Heads"}, {"items", heads}},
                        {{"heading", "Course"}, {"items", machine}}};
  return report;
}

int run(const Context& context, const Options& options) {
  end_at_once_when_interrupted();
  const bool is_file = options.in.size() == 1 && !fs::is_directory(options.in[0]);
  const Json report =
      is_file ? parse_json(io::read_file(options.in[0], 64 << 20), options.in[0]) : describe_runs(options.in);
  io::write_file(options.out, render_report(report));
  context.emit({{"out", options.out}});
  context.say("wrote " + options.out);
  return 0;
}

const Registered registered{
    {"report", "draw trainings, or a report.json, as one HTML file", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("in", options->in, "training folders, whose curves share their figures; or one report.json file")
           ->required()
           ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       app.add_option("--out", options->out, "HTML file");
       return [options, &context] { return run(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
