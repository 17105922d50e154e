// moh convert with the linear router: recipe "best" and its steps one by one.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

#include "cli/commands/convert_options.h"
#include "cli/progress.h"
#include "moh/base/error.h"
#include "moh/convert/recipe.h"

namespace moh::cli {

models::Llama convert_linear(const Context& context, const ConvertOptions& options, const models::LlamaConfig& config,
                             io::NamedTensors tensors) {
  MOH_CHECK(!options.shared && !options.top_k && options.shared_by == "first" && !options.fit_router,
            "[convert] the linear router is fitted to --data and shares no heads; leave out --shared, --top-k, "
            "--shared-by and --fit-router");
  MOH_CHECK(options.budget != "measured",
            "[convert] --budget measured is for the norm router; the linear router knows "
            "uniform and global");
  convert::RecipeOptions recipe;
  recipe.activated = options.activated;
  recipe.select = options.select;
  recipe.choose = options.choose;
  recipe.budget = options.budget;
  recipe.weighted = options.weighted;
  recipe.mean_heads = options.mean_heads;
  recipe.refit = options.refit;
  MOH_CHECK(options.leading_tokens >= 0, "[convert] --leading-tokens must not be negative, got ",
            options.leading_tokens);
  recipe.leading_tokens = options.leading_tokens;
  recipe.beta = options.beta;
  recipe.straight_through = options.straight_through.empty() ? "none" : options.straight_through;
  recipe.calibration = options.calibration;
  recipe.calibration.spread = true;
  const auto texts = open_texts(options, config, recipe.calibration);
  recipe.journal = options.out + "/conversion";
  recipe.statistics = options.statistics.empty() ? recipe.journal + "/statistics" : options.statistics;

  std::map<std::string, at::ScalarType> types;  // as they were, and so as they are saved
  for (auto& [name, tensor] : tensors) {
    types[name] = tensor.scalar_type();
    if (name.ends_with("self_attn.o_proj.weight")) recipe.weights = tensor.scalar_type();
    tensor = tensor.to(at::kFloat);
  }
  const models::Llama dense(config, std::move(tensors));
  recipe.autocast = context.autocast_type();
  // Unless told: in bf16 where the CPU multiplies it, then the faster one by a factor of two.
  if (context.dtype == "auto" && __builtin_cpu_supports("avx512bf16")) recipe.autocast = at::kBFloat16;
  context.say(fmt::format("measuring the heads on {} windows of {}{}", recipe.calibration.windows,
                          fmt::join(options.data, ", "), recipe.autocast ? ", in bf16 (--dtype fp32: not)" : ""));
  Progress progress("convert");
  recipe.progress = [&](double done, const std::string& step) { progress.update(done, step); };
  recipe.stop = [] { return interrupted.load(); };
  const models::Llama model = convert::convert_by_scores(dense, recipe);
  progress.finish();
  io::NamedTensors saved;
  for (const auto& [name, tensor] : model.parameters()) {
    const auto known = types.find(name);
    saved.emplace_back(name, tensor.to(known == types.end() ? recipe.weights : known->second));
  }
  return models::Llama(model.config(), std::move(saved));
}

}  // namespace moh::cli
