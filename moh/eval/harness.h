// Runs benchmarks (task.h) on a language model: `moh eval --task`.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moh/eval/batch.h"
#include "moh/eval/task.h"
#include "moh/text/tokenizer.h"
#include "moh/models/llama.h"

namespace moh::eval {

struct EvaluationOptions {
  std::string data;                        // folder, or a file where there is one task
  std::optional<int> shots;                // default: each task's own
  double limit = 0;                        // documents of each task at most; below 1: a share of them; 0: all
  std::vector<std::int64_t> end_ids = {};  // tokens that end a generated text
  BatchOptions batch = {};
  std::function<void(double done, const std::string& task)> progress = {};
  // Told of every document, one at a time: an object as lm-evaluation-harness logs it.
  std::function<void(const Json& sample)> sample = {};
};

struct Metric {
  std::string name, filter;
  double value = 0;
  std::optional<double> stderr_value = {};
};

struct TaskResult {
  std::string name, alias, version;
  bool is_group = false;
  int shots = 0;
  std::int64_t counted = 0, available = 0;  // documents
  std::vector<Metric> metrics = {};
  double active_heads = 1, seconds = 0;
};

struct Evaluation {
  std::vector<TaskResult> tasks, groups;
  bool cancelled = false;  // some documents were not counted
};

class Evaluator {
 public:
  // Reads every file. `model` and `tokenizer` must outlive it. Errors: see load_documents; options out of range.
  Evaluator(const models::Llama& model, const text::Tokenizer& tokenizer, const Selection& selection,
            EvaluationOptions options);
  ~Evaluator();

  // Ends early once batch.cancelled is true, which is looked at before every forward pass. Error: a document that
  // cannot be scored.
  void run();
  // What has been counted so far; may be called while `run` runs in another thread.
  Evaluation results() const;

 private:
  struct Plan;
  class TaskRun;
  static Plan make_plan(const Task& task, const EvaluationOptions& options);

  const models::Llama& model_;
  EvaluationOptions options_;
  std::vector<const TaskGroup*> groups_;
  std::vector<std::unique_ptr<TaskRun>> runs_;
  std::atomic<std::size_t> counted_{0};
  std::size_t documents_ = 0;
};

// {"results": ..., "versions": ..., "n-shot": ..., "n-samples": ...}, as lm-evaluation-harness writes its results.
Json harness_json(const Evaluation& evaluation);

}  // namespace moh::eval
