#include "moh/eval/harness.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <mutex>

#include "moh/base/error.h"
#include "moh/eval/greedy.h"
#include "moh/eval/likelihood.h"
#include "moh/eval/prompts.h"
#include "moh/eval/scoring.h"
#include "moh/eval/statistics.h"

namespace moh::eval {

// A task with its documents.
struct Evaluator::Plan {
  const Task* task = nullptr;
  int shots = 0;
  std::vector<Document> documents, pool;
  std::size_t available = 0;
};

namespace {

// Documents are taken in order, so many at a time, and within these by length: what an interrupted run has counted is
// about the first documents.
constexpr std::size_t kWindow = 256;

// Over the tasks that have counted something.
TaskResult average(const TaskGroup& group, const std::vector<TaskResult>& results) {
  TaskResult all{.name = group.name, .alias = group.alias, .version = group.version, .is_group = true};
  for (const std::string& metric : group.metrics) {
    std::vector<double> values;
    std::vector<std::optional<double>> stderrs;
    std::vector<std::int64_t> sizes;
    double active = 0;
    all.counted = all.available = 0;
    all.seconds = 0;
    for (const TaskResult& result : results) {
      if (std::find(group.tasks.begin(), group.tasks.end(), result.name) == group.tasks.end()) continue;
      const auto found = std::find_if(result.metrics.begin(), result.metrics.end(),
                                      [&](const Metric& each) { return each.name == metric; });
      if (found == result.metrics.end()) continue;
      values.push_back(found->value);
      stderrs.push_back(found->stderr_value);
      sizes.push_back(result.counted);
      active += result.active_heads * static_cast<double>(result.counted);
      all.counted += result.counted;
      all.available += result.available;
      all.seconds += result.seconds;
      all.shots = result.shots;
    }
    if (values.empty()) continue;
    all.active_heads = active / static_cast<double>(all.counted);
    all.metrics.push_back({metric, "none", weighted_mean(values, sizes), pooled_stderr(stderrs, sizes)});
  }
  return all;
}

}  // namespace

Evaluator::Plan Evaluator::make_plan(const Task& task, const EvaluationOptions& options) {
  Plan plan;
  plan.task = &task;
  if (task.takes_shots) plan.shots = options.shots.value_or(task.default_shots);
  plan.documents = load_documents(task, task.split, options.data);
  if (plan.shots > 0) plan.pool = load_documents(task, task.shots_split, options.data);
  plan.available = plan.documents.size();
  if (options.limit > 0) {
    const double most =
        options.limit < 1 ? std::ceil(static_cast<double>(plan.available) * options.limit) : std::floor(options.limit);
    if (most < static_cast<double>(plan.available)) plan.documents.resize(static_cast<std::size_t>(most));
  }
  return plan;
}

class Evaluator::TaskRun {
 public:
  TaskRun(const models::Llama& model, PromptTokenizer tokenizer, Plan plan, const EvaluationOptions& options,
          std::function<void()> counted)
      : model_(model),
        tokenizer_(tokenizer),
        plan_(std::move(plan)),
        task_(*plan_.task),
        options_(options),
        counted_(std::move(counted)) {
    outcomes_.resize(plan_.documents.size());
    for (const Filter& filter : task_.filters) filters_.push_back(filter.name);
    if (filters_.empty()) filters_.push_back("none");
  }

  // Throws Cancelled.
  void run() {
    PromptBuilder builder(task_, plan_.shots, plan_.pool);
    LikelihoodScorer scorer(model_, options_.batch);
    std::unique_ptr<GreedyGenerator> generator;
    if (task_.kind == Kind::kGenerate) {
      generator = std::make_unique<GreedyGenerator>(
          model_, tokenizer_.tokenizer(),
          GreedyOptions{.until = task_.until, .end_ids = end_ids(), .batch = options_.batch});
    }
    start_ = std::chrono::steady_clock::now();
    for (std::size_t begin = 0; begin < plan_.documents.size(); begin += kWindow) {
      const std::size_t end = std::min(plan_.documents.size(), begin + kWindow);
      std::vector<std::vector<std::pair<std::string, std::string>>> asked;
      for (std::size_t i = begin; i < end; ++i) {
        asked.push_back(requests(task_, plan_.documents[i], builder.examples(plan_.documents[i])));
      }
      if (generator) {
        std::vector<Ids> prompts;
        for (const auto& request : asked) prompts.push_back(tokenizer_.encode(request[0].first));
        generator->generate(prompts, [&](std::size_t i, const std::string& text) {
          settle(begin + i, asked[i], text, generator->active_heads());
        });
      } else {
        std::vector<Question> questions;
        for (const auto& request : asked) {
          Question& question = questions.emplace_back();
          for (const auto& [context, rest] : request) question.push_back(tokenizer_.encode_pair(context, rest));
        }
        scorer.score(questions, [&](std::size_t i, const std::vector<Likelihood>& likelihoods) {
          settle(begin + i, asked[i], likelihoods, scorer.active_heads());
        });
      }
    }
  }

  TaskResult result() const {
    const std::lock_guard lock(mutex_);
    TaskResult result{.name = task_.name,
                      .alias = task_.alias.empty() ? task_.name : task_.alias,
                      .version = Json(task_.version).dump(),
                      .shots = plan_.shots,
                      .available = static_cast<std::int64_t>(plan_.available),
                      .active_heads = active_heads_,
                      .seconds = seconds_};
    for (const Outcome& outcome : outcomes_) result.counted += outcome.scores.empty() ? 0 : 1;
    if (result.counted == 0) return result;
    for (std::size_t filter = 0; filter < filters_.size(); ++filter) {
      for (std::size_t metric = 0; metric < task_.metrics.size(); ++metric) {
        std::vector<double> values;
        for (const Outcome& outcome : outcomes_) {
          if (!outcome.scores.empty()) values.push_back(outcome.scores[filter][metric]);
        }
        const bool perplexity = task_.metrics[metric] == "perplexity";
        result.metrics.push_back(
            {task_.metrics[metric], filters_[filter], perplexity ? perplexity_of(values) : mean(values),
             perplexity ? perplexity_stderr(values, options_.batch.cancelled) : mean_stderr(values)});
      }
    }
    return result;
  }

 private:
  // What one document got: a value per filter and metric.
  struct Outcome {
    std::vector<std::vector<double>> scores;
  };

  // Tokens that end a text, and stop strings that are special tokens, which a decoded text does not show.
  Ids end_ids() const {
    Ids ids = options_.end_ids;
    const text::Tokenizer& tokenizer = tokenizer_.tokenizer();
    if (tokenizer.eos_id() >= 0) ids.push_back(tokenizer.eos_id());
    for (const std::string& stop : task_.until) {
      const Ids one = tokenizer.encode(stop, true);
      if (one.size() == 1 && tokenizer.piece_bytes(one[0]).empty()) ids.push_back(one[0]);
    }
    return ids;
  }

  void count(double active_heads) {
    active_heads_ = active_heads;
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    counted_();
  }

  Json sample(std::size_t index, const std::vector<std::pair<std::string, std::string>>& asked) const {
    const Document& document = plan_.documents[index];
    Json line{{"task", task_.name}, {"doc_id", index}, {"doc", document.record}};
    if (task_.kind == Kind::kChoices || task_.kind == Kind::kContexts) {
      line["target"] = document.gold;
    } else if (document.targets.size() == 1) {
      line["target"] = document.targets[0];
    } else {
      line["target"] = document.targets;
    }
    line["arguments"] = Json::array();
    for (const auto& [context, rest] : asked) {
      line["arguments"].push_back(task_.kind == Kind::kGenerate ? Json::array({context, Json{{"until", task_.until}}})
                                                                : Json::array({context, rest}));
    }
    return line;
  }

  void settle(std::size_t index, const std::vector<std::pair<std::string, std::string>>& asked,
              const std::vector<Likelihood>& likelihoods, double active_heads) {
    const std::lock_guard lock(mutex_);
    count(active_heads);
    outcomes_[index].scores = {score_likelihoods(task_, plan_.documents[index], likelihoods)};
    if (options_.sample) {
      Json line = sample(index, asked);
      line["resps"] = Json::array();
      for (const auto& [value, greedy] : likelihoods) {
        line["resps"].push_back(Json::array({Json::array({value, greedy})}));
      }
      line["filter"] = "none";
      for (std::size_t i = 0; i < task_.metrics.size(); ++i) line[task_.metrics[i]] = outcomes_[index].scores[0][i];
      options_.sample(line);
    }
  }

  void settle(std::size_t index, const std::vector<std::pair<std::string, std::string>>& asked, const std::string& text,
              double active_heads) {
    const std::lock_guard lock(mutex_);
    count(active_heads);
    for (const Filter& filter : task_.filters) {
      const std::string filtered = filter.apply(text);
      const double score = score_text(task_, plan_.documents[index], filtered);
      outcomes_[index].scores.push_back({score});
      if (!options_.sample) continue;
      Json line = sample(index, asked);
      line["resps"] = Json::array({Json::array({text})});
      line["filtered_resps"] = Json::array({filtered});
      line["filter"] = filter.name;
      line[task_.metrics[0]] = score;
      options_.sample(line);
    }
  }

  const models::Llama& model_;
  const PromptTokenizer tokenizer_;
  const Plan plan_;
  const Task& task_;
  const EvaluationOptions& options_;
  std::function<void()> counted_;
  std::vector<std::string> filters_;
  std::chrono::steady_clock::time_point start_;

  mutable std::mutex mutex_;  // of what follows, and of the samples
  std::vector<Outcome> outcomes_;
  double active_heads_ = 1, seconds_ = 0;
};

Evaluator::Evaluator(const models::Llama& model, const text::Tokenizer& tokenizer, const Selection& selection,
                     EvaluationOptions options)
    : model_(model), options_(std::move(options)), groups_(selection.groups) {
  MOH_CHECK(options_.limit >= 0 && std::isfinite(options_.limit), "[eval] --limit must not be negative, got ",
            options_.limit);
  MOH_CHECK(!options_.shots || *options_.shots >= 0, "[eval] --shots must not be negative, got ", *options_.shots);
  const PromptTokenizer prompts(tokenizer, model.config().bos_token_id);
  for (const Task* task : selection.tasks) {
    Plan plan = make_plan(*task, options_);
    documents_ += plan.documents.size();
    runs_.push_back(std::make_unique<TaskRun>(model, prompts, std::move(plan), options_, [this, task] {
      const auto counted = static_cast<double>(++counted_);
      if (options_.progress) options_.progress(counted / static_cast<double>(documents_), task->name);
    }));
  }
}

Evaluator::~Evaluator() = default;

void Evaluator::run() {
  try {
    for (const auto& each : runs_) each->run();
  } catch (const Cancelled&) {
  }
}

Evaluation Evaluator::results() const {
  Evaluation evaluation;
  evaluation.cancelled = counted_ < documents_;
  for (const auto& each : runs_) {
    TaskResult result = each->result();
    if (result.counted > 0) evaluation.tasks.push_back(std::move(result));
  }
  for (const TaskGroup* group : groups_) {
    TaskResult all = average(*group, evaluation.tasks);
    if (all.counted > 0) evaluation.groups.push_back(std::move(all));
  }
  return evaluation;
}

Json harness_json(const Evaluation& evaluation) {
  Json results = Json::object(), groups = Json::object(), versions = Json::object(), shots = Json::object(),
       samples = Json::object();
  const auto add = [&](const TaskResult& result) {
    Json line{{"name", result.name}, {"alias", result.alias}, {"sample_len", result.counted}};
    for (const Metric& metric : result.metrics) {
      line[metric.name + "," + metric.filter] = metric.value;
      line[metric.name + "_stderr," + metric.filter] = metric.stderr_value ? Json(*metric.stderr_value) : Json("N/A");
    }
    versions[result.name] = result.is_group ? Json(result.version) : Json::parse(result.version);
    shots[result.name] = result.shots;
    if (result.is_group) {
      groups[result.name] = line;
    } else {
      samples[result.name] = Json{{"original", result.available}, {"effective", result.counted}};
    }
    results[result.name] = std::move(line);
  };
  for (const TaskResult& result : evaluation.groups) add(result);
  for (const TaskResult& result : evaluation.tasks) add(result);
  Json all{{"results", results}};
  if (!groups.empty()) all["groups"] = groups;
  all["versions"] = versions;
  all["n-shot"] = shots;
  all["n-samples"] = samples;
  return all;
}

}  // namespace moh::eval
