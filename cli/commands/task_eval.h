// moh eval MODEL --task NAME,...: benchmarks (moh/eval/harness.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/run_time_heads.h"
#include "cli/stored_weights.h"

namespace moh::cli {

struct TaskEval {
  std::vector<std::string> names;
  std::optional<int> shots;
  double limit = 0;
  std::string samples;
  std::int64_t batch_tokens = 512;

  void add_options(CLI::App& app);
  bool asked_for() const { return !names.empty(); }
};

int eval_tasks(const Context& context, const std::string& model, const std::string& data, const RunTimeHeads& heads,
               const StoredWeights& weights, const TaskEval& options);

}  // namespace moh::cli
