// `moh bench generate`: tokens a second of one sequence, as llama-bench measures them: pp N, the prompt's tokens; tg N,
// generated ones; both behind `depth` tokens that are in the cache already.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "moh/base/fields.h"
#include "moh/models/llama.h"

namespace moh::bench {

struct GenerationOptions {
  std::vector<std::int64_t> prompts = {512}, generated = {128}, depths = {0};
  std::int64_t repetitions = 5;
  std::optional<double> activated;  // share of the heads; the model's own unless given
  std::uint64_t seed = 0;           // of the random prompts
};

// The model's weights are packed. A row {test, depth, tokens_per_second (mean), deviation, repetitions, activated} for
// every test and depth, told as it comes; `on_row` returns false to stop. Errors: counts that are not positive, more
// tokens than the model's context.
void time_generation(models::Llama& model, const GenerationOptions& options,
                     const std::function<bool(const Json&)>& on_row);

}  // namespace moh::bench
