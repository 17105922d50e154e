// moh convert in the paper's form (section 3.4), and what its routers and shared heads can learn from calibration text.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/commands/convert_options.h"
#include "cli/progress.h"
#include "moh/base/error.h"
#include "moh/convert/budget.h"
#include "moh/convert/importance.h"
#include "moh/text/tokenizer.h"

namespace moh::cli {
namespace {

bool needs_text(const ConvertOptions& options) {
  return options.shared_by == "importance" || options.budget != "uniform" || options.fit_router;
}

// The routers' matrices of a two-stage model: random, or as calibration fits wg.
void add_routers(const Context& context, const ConvertOptions& options, const models::LlamaConfig& config,
                 const convert::HeadStatistics& statistics, io::NamedTensors& tensors) {
  const at::ScalarType dtype = tensors.front().second.scalar_type();
  const at::Generator generator = at::detail::createCPUGenerator(context.seed);
  for (const auto& spec : models::llama_parameters(config)) {
    const auto router = spec.name.find("self_attn.wg");
    if (router == std::string::npos) continue;
    at::Tensor weight = at::empty(spec.shape, at::TensorOptions(at::kFloat));
    weight.normal_(0.0, config.initializer_range, generator);
    if (options.fit_router) {
      const std::string layer = spec.name.substr(std::string("model.layers.").size());
      weight = spec.name.ends_with(".wg.weight") ? convert::fit_router(config, std::stoll(layer), statistics)
                                                 : at::zeros_like(weight);
    }
    tensors.emplace_back(spec.name, weight.to(dtype));
  }
}

}  // namespace

std::vector<data::TokenStream> open_texts(const ConvertOptions& options, const models::LlamaConfig& config,
                                          convert::Calibration& calibration) {
  MOH_CHECK(!options.data.empty(),
            "[convert] --recipe best, --router linear, --shared-by importance, --budget and --fit-router measure heads "
            "on text: name it by --data");
  const auto tokenizer = text::load_tokenizer(options.in);
  std::vector<data::TokenStream> texts;
  for (const std::string& path : options.data) {
    texts.push_back(data::TokenStream::open(path, tokenizer.get(), config.vocab_size));
  }
  for (const auto& text : texts) calibration.texts.push_back(&text);
  return texts;
}

// How many heads, which of them are shared, and what the router should look at: as asked for.
models::Llama convert_as_paper(const Context& context, const ConvertOptions& options, models::LlamaConfig config,
                               io::NamedTensors tensors) {
  MOH_CHECK(
      options.choose == "top-k" && !options.weighted && !options.mean_heads && !options.refit &&
          options.leading_tokens == 0 && options.statistics.empty(),
      "[convert] --choose threshold, --weighted, --mean-heads, --refit, --leading-tokens and --statistics need --router linear or --recipe best");
  const std::int64_t heads = config.num_attention_heads;
  const std::int64_t group = options.select == "kv-group" ? heads / config.num_key_value_heads : 1;
  const auto division = [&](double activated) {
    return models::make_moh_config(config.num_hidden_layers, heads, activated, options.shared, options.top_k,
                                   options.router, group);
  };
  config.moh = division(options.activated);
  layers::parse_name(options.select, config.moh->select, "convert", "--select");
  config.moh->beta = options.beta;
  layers::parse_name(options.straight_through.empty() ? "selected" : options.straight_through,
                     config.moh->straight_through, "convert", "--straight-through");
  // In the authors' form uniform scores make every gate 1, so a new router starts near the dense model.
  if (options.router == "two-stage") config.moh->gates = layers::GateForm::kAuthors;

  convert::HeadStatistics statistics;
  std::vector<data::TokenStream> texts;
  convert::Calibration calibration = options.calibration;
  if (needs_text(options)) {
    texts = open_texts(options, config, calibration);
    models::LlamaConfig dense = config;
    dense.moh.reset();
    for (auto& [name, tensor] : tensors) tensor = tensor.clone();  // out of the mapped file: calibration may scale them
    models::Llama model(dense, tensors);
    context.say(
        fmt::format("measuring the heads on {} windows of {}", calibration.windows, fmt::join(options.data, ", ")));
    statistics = convert::measure_heads(model, config, calibration);
    if (options.shared_by == "importance") config.moh->head_order = convert::importance_order(statistics, group);
    if (options.fit_router && options.router == "norm") convert::calibrate_router(model, config, statistics);
  }
  if (options.budget != "uniform") {
    MOH_CHECK(options.router == "norm",
              "[convert] --budget measures the heads that the router chooses, and a two-stage router has to be trained "
              "first; use --router norm or linear");
    const std::int64_t shared = config.moh->shared_heads[0];
    const auto shared_of = [&](std::int64_t active) {
      if (options.top_k) return active - std::min(active, *options.top_k);
      if (options.shared) return std::min(active, shared);
      return division(static_cast<double>(active) / static_cast<double>(heads)).shared_heads[0];
    };
    if (options.budget == "global") {
      convert::budget_by_scores(config, options.activated, shared_of, statistics);
    } else {
      io::NamedTensors fp32;
      for (const auto& [name, tensor] : tensors) fp32.emplace_back(name, tensor.to(at::kFloat));
      models::Llama model(config, std::move(fp32));
      Progress progress("convert");
      convert::budget_by_measurement(model, options.activated, shared_of, calibration,
                                     [&](double done) { progress.update(done); });
      progress.finish();
      config.moh = model.config().moh;
    }
  }
  if (options.router == "two-stage") add_routers(context, options, config, statistics, tensors);
  models::check_llama_config(config, "convert");
  return models::Llama(config, std::move(tensors));
}

}  // namespace moh::cli
