#include "moh/convert/recipe.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

#include "moh/base/error.h"
#include "moh/convert/journal.h"
#include "moh/convert/loss_metric.h"
#include "moh/convert/refit.h"
#include "moh/convert/router_fit.h"
#include "moh/convert/selection.h"
#include "moh/layers/routers/linear.h"
#include "moh/layers/routers/linear_keys.h"
#include "moh/ops/autocast.h"

namespace moh::convert {
namespace {

using at::Tensor;
using models::Llama;
using models::LlamaConfig;

constexpr double kSecondsBetweenSaves = 20;
// Gradients are dear, and what is made of them, a mean for a whole layer, needs fewer tokens than the regressions.
constexpr std::int64_t kGradientWindows = 16;
// Time of the passes, in units of one forward pass over the windows that they read.
constexpr double kGradientPasses = 4, kRouterPasses = 1.2, kAmongOthersPasses = 1.8, kRefitPasses = 1.5;

std::string prefix(std::int64_t layer) { return "model.layers." + std::to_string(layer) + ".self_attn."; }

Tensor find(const io::NamedTensors& tensors, const std::string& name) {
  for (const auto& [key, tensor] : tensors) {
    if (key == name) return tensor;
  }
  fail("[convert] the journal lacks `", name, "`; remove its folder and begin anew");
}

Tensor parameter(const Llama& model, const std::string& name) {
  for (const auto& [key, tensor] : model.parameters()) {
    if (key == name) return tensor;
  }
  fail("[convert] the model has no tensor `", name, "`");
}

std::vector<double> numbers(const Tensor& tensor) {
  const Tensor values = tensor.to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

// Another model, or the same one trained on: the journal must not go on with it.
double checksum(const Llama& model) {
  double sum = 0;
  for (const auto& [name, tensor] : model.parameters()) sum += tensor.abs().sum(at::kDouble).item<double>();
  return sum;
}

class Conversion {
 public:
  Conversion(const Llama& dense, const RecipeOptions& options)
      : dense_(dense),
        options_(options),
        length_(window_length(dense.config(), options.calibration)),
        windows_(window_count(options.calibration, length_)),
        gradient_windows_(std::min(windows_, kGradientWindows)),
        group_(options.select == "kv-group" ? dense.config().num_attention_heads / dense.config().num_key_value_heads
                                            : 1),
        choices_(dense.config().num_attention_heads / group_),
        layers_(dense.config().num_hidden_layers),
        statistics_(options.statistics, statistics_settings()),
        journal_(options.journal, settings()) {
    const double part = static_cast<double>(gradient_windows_) / static_cast<double>(windows_);
    const double lengths[] = {kGradientPasses * part, kRouterPasses * part, kAmongOthersPasses, kRefitPasses};
    Pass* const passes[] = {&gradients_, &first_, &among_, &last_};
    for (int i = 0; i < 4; ++i) {
      *passes[i] = {all_passes_, lengths[i]};
      all_passes_ += lengths[i];
    }
  }

  Llama run() {
    measure_loss();
    const c10::NoGradGuard no_grad;
    fit_routers();
    LlamaConfig config = planned_config();
    if (!options_.weighted) {
      fit_among_others(config);
      config = planned_config();
    }
    return refit(std::move(config));
  }

 private:
  Json statistics_settings() const {
    Json json = {{"select", options_.select},
                 {"mean_heads", options_.mean_heads},
                 {"windows", windows_},
                 {"sequence", length_},
                 {"model", checksum(dense_)},
                 {"weights", c10::toString(options_.weights)},
                 {"products", c10::toString(options_.autocast.value_or(at::kFloat))}};
    for (std::int64_t i = 0; i < windows_; ++i) {
      const Tensor ids = window_ids(options_.calibration, length_, i);
      json["text"].push_back((ids * at::arange(1, ids.size(1) + 1)).sum().item<std::int64_t>());
    }
    return json;
  }
  Json settings() const {
    return {
        {"activated", options_.activated},    {"choose", options_.choose}, {"budget", options_.budget},
        {"weighted", options_.weighted},      {"refit", options_.refit},   {"leading_tokens", options_.leading_tokens},
        {"statistics", statistics_settings()}};
  }

  // A part of the work, as it shows in the progress.
  struct Pass {
    double start = 0, length = 0;
  };
  void step(const Pass& pass, double done, const char* what) {
    if (options_.stop && options_.stop()) throw Stopped();
    if (options_.progress) options_.progress((pass.start + pass.length * done) / all_passes_, what);
  }
  // The i-th of the windows that gradients are taken of: spread as all of them, texts in turn.
  std::int64_t gradient_window(std::int64_t i) const {
    const auto texts = static_cast<std::int64_t>(options_.calibration.texts.size());
    const std::int64_t rounds = windows_ / texts, wanted = gradient_windows_ / texts;
    if (gradient_windows_ == windows_ || wanted == 0 || rounds < wanted) return i;
    return i / texts * (rounds / wanted) * texts + i % texts;
  }

  void measure_loss() {
    metric_ = new_metric(dense_.config(), group_);
    if (statistics_.has("metric")) {
      const auto saved = statistics_.load("metric");
      for (std::int64_t layer = 0; layer < layers_; ++layer) {
        metric_.second[layer] = find(saved, "second." + std::to_string(layer));
        metric_.mean[layer] = find(saved, "mean." + std::to_string(layer));
      }
      metric_.windows = find(saved, "windows").item<std::int64_t>();
      metric_.tokens = metric_.windows * length_;
      metric_.scored = metric_.windows * (length_ - 1);
    }
    using Clock = std::chrono::steady_clock;
    auto saved_at = Clock::now();
    while (metric_.windows < gradient_windows_) {
      std::int64_t layer = 0;
      add_window(metric_, dense_, options_.calibration, gradient_window(metric_.windows), options_.autocast, [&] {
        const double inside = static_cast<double>(layer++) / static_cast<double>(2 * layers_ + 1);
        const double done = (static_cast<double>(metric_.windows) + inside) / static_cast<double>(gradient_windows_);
        step(gradients_, done, "gradients");
      });
      const bool last = metric_.windows == gradient_windows_;
      if (!last && std::chrono::duration<double>(Clock::now() - saved_at).count() < kSecondsBetweenSaves) continue;
      io::NamedTensors entry = {{"windows", at::full({}, metric_.windows, at::TensorOptions(at::kLong))}};
      for (std::int64_t i = 0; i < layers_; ++i) {
        entry.emplace_back("second." + std::to_string(i), metric_.second[i]);
        entry.emplace_back("mean." + std::to_string(i), metric_.mean[i]);
      }
      statistics_.save("metric", entry);
      saved_at = Clock::now();
    }
  }

  // What the dense layer sees and makes of hidden states.
  struct Seen {
    Tensor input, heads, attended;  // [N, C], [N, choices, width], [N, C]
  };
  Seen look(std::int64_t layer, const std::vector<Tensor>& stream, const Pass& pass, const char* what) {
    std::vector<Tensor> inputs, heads, attended;
    for (std::size_t i = 0; i < stream.size(); ++i) {
      step(pass, place(layer, i, 2 * stream.size()), what);
      const ops::Autocast products(options_.autocast);
      const auto output = dense_.forward({.layers = models::LayerRange{layer, 1, stream[i], /*heads_only=*/true},
                                          .keep_router_inputs = true,
                                          .keep_heads = true});
      inputs.push_back(output.router_inputs[0].input.flatten(0, 1).to(at::kFloat));
      heads.push_back(output.heads[0].reshape({length_, choices_, -1}).to(at::kFloat));
      attended.push_back(output.range_hidden.flatten(0, 1).to(at::kFloat));
    }
    return {at::cat(inputs), at::cat(heads), at::cat(attended)};
  }
  // The stream behind the layer, whose attention gives `attended`.
  void move(std::int64_t layer, const Tensor& attended, std::vector<Tensor>& stream, const Pass& pass,
            const char* what) {
    if (layer + 1 == layers_) return;
    for (std::size_t i = 0; i < stream.size(); ++i) {
      step(pass, place(layer, stream.size() + i, 2 * stream.size()), what);
      const ops::Autocast products(options_.autocast);
      models::LayerRange range{layer, 1, stream[i]};
      range.attended = attended.narrow(0, static_cast<std::int64_t>(i) * length_, length_).unsqueeze(0);
      stream[i] = dense_.forward({.layers = range}).range_hidden;
    }
  }
  double place(std::int64_t layer, std::size_t done, std::size_t all) const {
    return (static_cast<double>(layer) + static_cast<double>(done) / static_cast<double>(all)) /
           static_cast<double>(layers_);
  }
  std::vector<Tensor> embedded(bool all) const {
    std::vector<Tensor> stream;
    for (std::int64_t i = 0; i < (all ? windows_ : gradient_windows_); ++i) {
      const Tensor ids = window_ids(options_.calibration, length_, all ? i : gradient_window(i));
      stream.push_back(dense_.embed(ids.narrow(1, 0, length_)));
    }
    return stream;
  }
  Tensor rounded(const Tensor& tensor) const { return tensor.to(options_.weights).to(at::kFloat); }

  struct Router {
    Tensor weight, bias;  // [choices, C], [choices]
    Tensor scores;        // [N, choices] on the dense stream
    std::vector<double> rank_cost;
  };
  Router router_of(const RouterFit& fit, const Tensor& input, const Tensor& costs) const {
    Router router{rounded(fit.weight), rounded(fit.bias), {}, {}};
    router.scores = layers::linear_scores(input, router.weight, router.bias);
    router.rank_cost = rank_costs(router.scores, costs);
    return router;
  }

  // Routers that know what a head costs by itself: of the windows that the metric is of. They serve every share.
  void fit_routers() {
    routers_ =
        routers_by_layer(statistics_, "router-", embedded(false), first_, [&](std::int64_t layer, const Seen& seen) {
          const Tensor costs = head_scores(metric_, layer, seen.heads, projection(layer), options_.mean_heads);
          return router_of(fit_router_to_costs(seen.input, costs), seen.input, costs);
        });
  }

  // Routers that know what a head costs among those that `config` takes beside it.
  void fit_among_others(const LlamaConfig& config) {
    routers_ = routers_by_layer(journal_, "among-", embedded(true), among_, [&](std::int64_t layer, const Seen& seen) {
      const RouterFit alone = fit_router_to_costs(
          seen.input, head_scores(metric_, layer, seen.heads, projection(layer), options_.mean_heads));
      const Tensor scores = layers::linear_scores(seen.input, alone.weight, alone.bias);
      const Tensor gates = layers::route_linear(scores, choice_of(config, layer)).gates;
      const Tensor costs = costs_among_others(metric_, layer, seen.heads, gates, projection(layer),
                                              outputs_for(seen.heads, gates, projection(layer)));
      return router_of(fit_router_to_costs(seen.input, costs, alone), seen.input, costs);
    });
  }

  template <class Fit>
  std::vector<Router> routers_by_layer(const Journal& kept, const std::string& name, std::vector<Tensor> stream,
                                       const Pass& pass, const Fit& fit) {
    const auto entry = [&](std::int64_t layer) { return name + std::to_string(layer); };
    const bool all_known = kept.has(entry(layers_ - 1));
    std::vector<Router> routers;
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      Seen seen;
      if (!all_known) seen = look(layer, stream, pass, "routers");
      Router router;
      if (kept.has(entry(layer))) {
        const auto saved = kept.load(entry(layer));
        router = {find(saved, "weight"), find(saved, "bias"), find(saved, "scores"), numbers(find(saved, "rank_cost"))};
      } else {
        router = fit(layer, seen);
        kept.save(entry(layer), {{"weight", router.weight},
                                 {"bias", router.bias},
                                 {"scores", router.scores},
                                 {"rank_cost", at::tensor(router.rank_cost, at::TensorOptions(at::kDouble))}});
      }
      routers.push_back(std::move(router));
      if (!all_known) move(layer, seen.attended, stream, pass, "routers");
    }
    return routers;
  }

  LlamaConfig planned_config() {
    LlamaConfig config = dense_.config();
    models::MohConfig moh;
    moh.router = "linear";
    layers::parse_name(options_.select, moh.select, "convert", "--select");
    layers::parse_name(options_.straight_through, moh.straight_through, "convert", "--straight-through");
    moh.beta = options_.beta;
    moh.own = {{"choose", options_.choose}, {"weighted", options_.weighted}, {"mean_heads", options_.mean_heads}};
    if (options_.leading_tokens > 0) moh.own["leading_tokens"] = options_.leading_tokens;
    moh.shared_heads.assign(layers_, 0);
    if (moh.by_threshold()) {
      moh.top_k.assign(layers_, config.num_attention_heads);
      moh.own["activated"] = options_.activated;
      std::vector<Tensor> scores;
      for (const Router& router : routers_) scores.push_back(router.scores);
      shares_ = planned_shares(scores);
      for (std::int64_t i = 0; i < layers_; ++i) {
        moh.own["thresholds"].push_back(layer_thresholds(scores[i], shares_[i]));
      }
    } else {
      std::vector<std::vector<double>> costs;
      for (const Router& router : routers_) costs.push_back(router.rank_cost);
      std::vector<std::int64_t> counts = choices_per_layer(costs, options_.activated);
      if (options_.budget == "uniform") {
        const auto all = static_cast<double>(choices_);
        counts.assign(layers_, std::max<std::int64_t>(1, std::llround(options_.activated * all)));
      }
      for (const std::int64_t count : counts) moh.top_k.push_back(count * group_);
    }
    config.moh = std::move(moh);
    return config;
  }

  Llama refit(LlamaConfig config) {
    io::NamedTensors tensors;
    const at::TensorOptions options(at::kFloat);
    for (const auto& spec : models::llama_parameters(config)) {
      if (!spec.tied_to.empty()) continue;
      const bool is_new =
          spec.name.find(".wg.") != std::string::npos || spec.name.find(".head_mean.") != std::string::npos;
      const bool changes = spec.name.ends_with("self_attn.o_proj.weight");
      tensors.emplace_back(spec.name, is_new    ? at::zeros(spec.shape, options)
                                      : changes ? parameter(dense_, spec.name).clone()
                                                : parameter(dense_, spec.name));
    }
    Llama model(config, std::move(tensors));
    std::vector<Tensor> stream = embedded(true);
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      const std::string entry = "layer-" + std::to_string(layer);
      const Seen seen = look(layer, stream, last_, "refit");
      io::NamedTensors weights;
      if (journal_.has(entry)) {
        weights = journal_.load(entry);
      } else {
        weights = refit_layer(model, layer, seen);
        journal_.save(entry, weights);
      }
      for (const auto& [name, tensor] : weights) {
        if (name == "thresholds") {
          model.mutable_config().moh->own["thresholds"][layer] = numbers(tensor);
        } else {
          parameter(model, prefix(layer) + name).copy_(tensor);
        }
      }
      const Tensor gates = gates_of(model, layer, seen.input);
      const auto& known = dense_.config();
      Tensor attended =
          at::linear((seen.heads * gates.unsqueeze(-1)).flatten(1), parameter(model, prefix(layer) + "o_proj.weight"));
      if (known.output_bias) attended += parameter(model, prefix(layer) + "o_proj.bias");
      if (options_.mean_heads) {
        attended += layers::mean_heads(gates, parameter(model, prefix(layer) + "head_mean.weight"),
                                       parameter(model, prefix(layer) + "head_mean.bias"));
      }
      move(layer, attended, stream, last_, "refit");
    }
    if (options_.progress) options_.progress(1, "refit");
    return model;
  }

  Tensor projection(std::int64_t layer) const { return parameter(dense_, prefix(layer) + "o_proj.weight"); }
  OutputWeights outputs_for(const Tensor& heads, const Tensor& gates, const Tensor& projection) const {
    if (options_.refit) return refit_outputs(heads, gates, projection, options_.mean_heads);
    return options_.mean_heads ? mean_outputs(heads, gates, projection) : OutputWeights{projection, {}, {}};
  }
  // For the tokens of all windows.
  layers::LinearChoice choice_of(const LlamaConfig& config, std::int64_t layer) const {
    layers::LinearChoice choice{.top_k = config.top_k(layer) / group_, .weighted = options_.weighted};
    if (config.moh->by_threshold()) choice.threshold = layers::layer_threshold(config.moh->own, layer);
    if (options_.leading_tokens > 0) {
      const Tensor positions = at::arange(windows_ * length_, at::TensorOptions(at::kLong)).remainder(length_);
      choice.all_of = positions.lt(options_.leading_tokens).unsqueeze(-1);
    }
    return choice;
  }
  Tensor gates_of(const Llama& model, std::int64_t layer, const Tensor& input) const {
    const Tensor scores = layers::linear_scores(input, parameter(model, prefix(layer) + "wg.weight"),
                                                parameter(model, prefix(layer) + "wg.bias"));
    return layers::route_linear(scores, choice_of(model.config(), layer)).gates;
  }

  // The layer's new tensors, named behind the attention's prefix.
  io::NamedTensors refit_layer(const Llama& model, std::int64_t layer, const Seen& seen) const {
    const Router& router = routers_[layer];
    io::NamedTensors weights = {{"wg.weight", router.weight}, {"wg.bias", router.bias}};
    const Tensor scores = layers::linear_scores(seen.input, router.weight, router.bias);
    LlamaConfig config = model.config();
    if (config.moh->by_threshold()) {
      const std::vector<double> thresholds = layer_thresholds(scores, shares_[layer]);
      config.moh->own["thresholds"][layer] = thresholds;
      weights.emplace_back("thresholds", at::tensor(thresholds, at::TensorOptions(at::kDouble)));
    }
    const Tensor gates = layers::route_linear(scores, choice_of(config, layer)).gates;
    const OutputWeights outputs = outputs_for(seen.heads, gates, projection(layer));
    weights.emplace_back("o_proj.weight", rounded(outputs.projection));
    if (options_.mean_heads) {
      weights.emplace_back("head_mean.weight", rounded(outputs.mean));
      weights.emplace_back("head_mean.bias", rounded(outputs.mean_bias));
    }
    return weights;
  }

  const Llama& dense_;
  const RecipeOptions& options_;
  const std::int64_t length_, windows_, gradient_windows_, group_, choices_, layers_;
  const Journal statistics_, journal_;
  Pass gradients_, first_, among_, last_;
  double all_passes_ = 0;
  LossMetric metric_;
  std::vector<Router> routers_;
  std::vector<std::vector<double>> shares_;  // per layer, by overall share
};

}  // namespace

Llama convert_by_scores(const Llama& dense, const RecipeOptions& options) {
  MOH_CHECK(!dense.config().moh, "[convert] the model is a Mixture-of-Head one already");
  MOH_CHECK(options.activated > 0 && options.activated <= 1, "[convert] activated must be in (0, 1], got ",
            options.activated);
  for (const auto& [name, tensor] : dense.parameters()) {
    MOH_CHECK(tensor.scalar_type() == at::kFloat, "[convert] the dense model must be in fp32, `", name, "` is ",
              tensor.scalar_type());
  }
  return Conversion(dense, options).run();
}

}  // namespace moh::convert
