#include "cli/commands/task_eval.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <future>
#include <mutex>

#include "cli/progress.h"
#include "moh/base/error.h"
#include "moh/eval/harness.h"
#include "moh/generate/end_tokens.h"

namespace moh::cli {
namespace {

// lm-evaluation-harness's keys without the filter where there is one filter, with all filters where there are more
// (the first one's then stands without it too).
Json task_line(const eval::TaskResult& result) {
  Json line = Json::object();
  line[result.is_group ? "group" : "task"] = result.name;
  line["version"] = result.is_group ? Json(result.version) : Json::parse(result.version);
  line["shots"] = result.shots;
  line["n"] = result.counted;
  const auto put = [&](const std::string& name, const std::string& ending, const eval::Metric& metric) {
    line[name + ending] = metric.value;
    line[name + "_stderr" + ending] = metric.stderr_value ? Json(*metric.stderr_value) : Json("N/A");
  };
  for (const eval::Metric& metric : result.metrics) {
    if (!line.contains(metric.name)) put(metric.name, "", metric);
  }
  for (const eval::Metric& metric : result.metrics) {
    if (metric.filter != result.metrics[0].filter || result.metrics.back().filter != result.metrics[0].filter) {
      put(metric.name, "," + metric.filter, metric);
    }
  }
  line["active_heads"] = result.active_heads;
  line["documents_per_second"] = static_cast<double>(result.counted) / result.seconds;
  return line;
}

std::string table(const eval::Evaluation& evaluation) {
  std::string text = fmt::format("{:<32} {:>7} {:>5} {:>6}  {:<16} {:<11} {:>9} {:>9}\n", "task", "version", "shots",
                                 "n", "filter", "metric", "value", "stderr");
  for (const auto* results : {&evaluation.tasks, &evaluation.groups}) {
    for (const eval::TaskResult& result : *results) {
      std::string name = result.name;
      for (const eval::Metric& metric : result.metrics) {
        text += fmt::format("{:<32} {:>7} {:>5} {:>6}  {:<16} {:<11} {:>9.4f} {:>9}\n", name,
                            name.empty() ? "" : result.version, name.empty() ? "" : fmt::format("{}", result.shots),
                            name.empty() ? "" : fmt::format("{}", result.counted), metric.filter, metric.name,
                            metric.value, metric.stderr_value ? fmt::format("{:.4f}", *metric.stderr_value) : "N/A");
        name.clear();
      }
    }
  }
  text.pop_back();
  return text;
}

void report(const Context& context, const eval::Evaluation& evaluation) {
  if (evaluation.cancelled) fmt::print(stderr, "interrupted: the scores are of the documents counted until then\n");
  for (const auto* results : {&evaluation.tasks, &evaluation.groups}) {
    for (const eval::TaskResult& result : *results) context.emit(task_line(result));
  }
  context.emit(eval::harness_json(evaluation));
  if (!context.json && !evaluation.tasks.empty()) context.say(table(evaluation));
}

}  // namespace

void TaskEval::add_options(CLI::App& app) {
  const std::string group = "benchmarks";
  app.add_option(
         "--task", names,
         "names of lm-evaluation-harness, separated by commas: arc_easy, arc_challenge, boolq, ceval-valid, cmmlu, "
         "gsm8k, hellaswag, lambada_openai, logiqa, mmlu, nq_open, openbookqa, piqa, sciq, truthfulqa_mc1, "
         "truthfulqa_mc2, winogrande, or one subject like mmlu_anatomy; --data is a folder of their files")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(group);
  app.add_option("--shots", shots, "examples before every question; default: 0, gsm8k 5")->group(group);
  app.add_option("--limit", limit, "documents of every task, or below 1 a share of them; 0: all")->group(group);
  app.add_option("--samples", samples, "write what was asked and answered to this file, a JSON object a document")
      ->group(group);
  app.add_option("--batch-tokens", batch_tokens, "tokens at a time")->group(group);
}

int eval_tasks(const Context& context, const std::string& model_folder, const std::string& data,
               const RunTimeHeads& heads, const StoredWeights& weights, const TaskEval& options) {
  const eval::Selection selection = eval::select_tasks(options.names);
  models::Llama model = models::Llama::load(model_folder, context.weights_type(), models::read_as(context.read_as));
  model.to(context.torch_device());
  heads.apply(model.mutable_config());
  weights.apply(model, model_folder);
  const auto tokenizer = text::load_tokenizer(model_folder);
  std::ofstream samples;
  std::mutex writing;
  if (!options.samples.empty()) {
    samples.open(options.samples, std::ios::binary | std::ios::trunc);
    MOH_CHECK(samples.good(), "[eval] cannot write ", options.samples);
  }
  Progress progress("eval");
  eval::EvaluationOptions evaluation_options{
      .data = data,
      .shots = options.shots,
      .limit = options.limit,
      .end_ids = generate::end_tokens(model_folder, model.config()),
      .batch = {.tokens = options.batch_tokens, .cancelled = [] { return interrupted.load(); }},
      .progress = [&](double done, const std::string& task) { progress.update(done, task); }};
  if (samples.is_open()) {
    evaluation_options.sample = [&](const Json& sample) {
      const std::lock_guard lock(writing);
      samples << sample.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
      MOH_CHECK(samples.good(), "[eval] cannot write ", options.samples, "; is the disk full?");
    };
  }
  eval::Evaluator evaluator(model, *tokenizer, selection, evaluation_options);
  std::future<void> running = std::async(std::launch::async, [&] { evaluator.run(); });
  // A forward pass of a large model may take long: after an interruption it is not waited for.
  constexpr auto kStep = std::chrono::milliseconds(20);
  for (int patience = 25; running.wait_for(kStep) != std::future_status::ready;) {
    if (interrupted && --patience == 0) {
      progress.finish();
      report(context, evaluator.results());
      const std::lock_guard lock(writing);  // no half lines
      samples.flush();
      _exit(kInterruptedStatus);
    }
  }
  running.get();
  progress.finish();
  const auto evaluation = evaluator.results();
  samples.flush();
  MOH_CHECK(!samples.is_open() || samples.good(), "[eval] cannot write ", options.samples, "; is the disk full?");
  if (options.shots && *options.shots > 0) {
    for (const eval::Task* task : selection.tasks) {
      if (!task->takes_shots) fmt::print(stderr, "{} has examples of its own; --shots is not for it\n", task->name);
    }
  }
  report(context, evaluation);
  return evaluation.cancelled ? kInterruptedStatus : 0;
}

}  // namespace moh::cli
