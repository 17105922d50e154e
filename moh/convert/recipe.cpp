#include "moh/convert/recipe.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <numeric>

#include "moh/base/error.h"
#include "moh/convert/journal.h"
#include "moh/convert/loss_metric.h"
#include "moh/convert/refit.h"
#include "moh/convert/router_fit.h"
#include "moh/convert/selection.h"
#include "moh/layers/routers/linear.h"

namespace moh::convert {
namespace {

using at::Tensor;
using models::Llama;
using models::LlamaConfig;

constexpr double kSecondsBetweenSaves = 20;

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
        group_(options.select == "kv-group" ? dense.config().num_attention_heads / dense.config().num_key_value_heads
                                            : 1),
        choices_(dense.config().num_attention_heads / group_),
        layers_(dense.config().num_hidden_layers),
        statistics_(options.statistics, statistics_settings()),
        journal_(options.journal, settings()) {
    for (std::int64_t i = 0; i < windows_; ++i) ids_.push_back(window_ids(options.calibration, length_, i));
  }

  Llama run() {
    measure_loss();
    const c10::NoGradGuard no_grad;
    fit_routers();
    return refit();
  }

 private:
  Json statistics_settings() const {
    Json json = {{"select", options_.select}, {"mean_heads", options_.mean_heads},
                 {"windows", windows_},       {"sequence", length_},
                 {"model", checksum(dense_)}, {"weights", c10::toString(options_.weights)}};
    for (std::int64_t i = 0; i < windows_; ++i) {
      const Tensor ids = window_ids(options_.calibration, length_, i);
      json["text"].push_back((ids * at::arange(1, ids.size(1) + 1)).sum().item<std::int64_t>());
    }
    return json;
  }
  Json settings() const {
    return {{"activated", options_.activated}, {"choose", options_.choose}, {"budget", options_.budget},
            {"weighted", options_.weighted},   {"refit", options_.refit},   {"statistics", statistics_settings()}};
  }

  // Passes in units of one forward pass over the text: 3 + 1 + 2.
  void step(double passes, const char* what) {
    if (options_.stop && options_.stop()) throw Stopped();
    if (options_.progress) options_.progress(passes / 6, what);
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
    while (metric_.windows < windows_) {
      std::int64_t layer = 0;
      add_window(metric_, dense_, options_.calibration, [&] {
        const double inside = static_cast<double>(layer++) / static_cast<double>(2 * layers_ + 1);
        step(3 * (static_cast<double>(metric_.windows) + inside) / static_cast<double>(windows_), "gradients");
      });
      const bool last = metric_.windows == windows_;
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

  // What the dense layer sees and makes of hidden states: its input [N, C] and its heads [N, choices, width].
  struct Seen {
    Tensor input, heads;
  };
  Seen look(std::int64_t layer, const std::vector<Tensor>& stream, double passes, const char* what) {
    std::vector<Tensor> inputs, heads;
    for (std::size_t i = 0; i < stream.size(); ++i) {
      step(passes + static_cast<double>(i) / static_cast<double>(stream.size() * layers_), what);
      const auto output = dense_.forward({.layers = models::LayerRange{layer, 1, stream[i], /*heads_only=*/true},
                                          .keep_router_inputs = true,
                                          .keep_heads = true});
      inputs.push_back(output.router_inputs[0].input.flatten(0, 1));
      heads.push_back(output.heads[0].reshape({length_, choices_, -1}));
    }
    return {at::cat(inputs), at::cat(heads)};
  }
  void move(const Llama& model, std::int64_t layer, std::vector<Tensor>& stream, double passes, const char* what) {
    for (std::size_t i = 0; i < stream.size(); ++i) {
      step(passes + static_cast<double>(i) / static_cast<double>(stream.size() * layers_), what);
      stream[i] = model.forward({.layers = models::LayerRange{layer, 1, stream[i]}}).range_hidden;
    }
  }
  std::vector<Tensor> embedded() const {
    std::vector<Tensor> stream;
    for (const Tensor& ids : ids_) stream.push_back(dense_.embed(ids.narrow(1, 0, length_)));
    return stream;
  }
  Tensor rounded(const Tensor& tensor) const { return tensor.to(options_.weights).to(at::kFloat); }

  struct Router {
    Tensor weight, bias;  // [choices, C], [choices]
    Tensor scores;        // [N, choices] on the dense stream
    std::vector<double> rank_cost;
  };

  void fit_routers() {
    std::vector<Tensor> stream = embedded();
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      const std::string entry = "router-" + std::to_string(layer);
      const double passes = 3 + static_cast<double>(layer) / static_cast<double>(layers_);
      Router router;
      if (statistics_.has(entry)) {
        const auto saved = statistics_.load(entry);
        router = {find(saved, "weight"), find(saved, "bias"), find(saved, "scores"), numbers(find(saved, "rank_cost"))};
      } else {
        const Seen seen = look(layer, stream, passes, "routers");
        const Tensor costs = head_scores(metric_, layer, seen.heads, options_.mean_heads);
        const RouterFit fit = fit_router_to_costs(seen.input, costs);
        router.weight = rounded(fit.weight);
        router.bias = rounded(fit.bias);
        router.scores = layers::linear_scores(seen.input, router.weight, router.bias);
        router.rank_cost = rank_costs(router.scores, costs);
        statistics_.save(entry, {{"weight", router.weight},
                                 {"bias", router.bias},
                                 {"scores", router.scores},
                                 {"rank_cost", at::tensor(router.rank_cost, at::TensorOptions(at::kDouble))}});
      }
      routers_.push_back(std::move(router));
      if (layer + 1 < layers_) move(dense_, layer, stream, passes, "routers");
    }
  }

  LlamaConfig planned_config() {
    LlamaConfig config = dense_.config();
    models::MohConfig moh;
    moh.router = "linear";
    layers::parse_name(options_.select, moh.select, "convert", "--select");
    layers::parse_name(options_.straight_through, moh.straight_through, "convert", "--straight-through");
    moh.beta = options_.beta;
    moh.own = {{"choose", options_.choose}, {"weighted", options_.weighted}, {"mean_heads", options_.mean_heads}};
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

  Llama refit() {
    LlamaConfig config = planned_config();
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
    std::vector<Tensor> stream = embedded();
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      const std::string entry = "layer-" + std::to_string(layer);
      const double passes = 4 + 2 * static_cast<double>(layer) / static_cast<double>(layers_);
      io::NamedTensors weights;
      if (journal_.has(entry)) {
        weights = journal_.load(entry);
      } else {
        weights = refit_layer(model, layer, look(layer, stream, passes, "refit"));
        journal_.save(entry, weights);
      }
      for (const auto& [name, tensor] : weights) {
        if (name == "thresholds") {
          model.mutable_config().moh->own["thresholds"][layer] = numbers(tensor);
        } else {
          parameter(model, prefix(layer) + name).copy_(tensor);
        }
      }
      if (layer + 1 < layers_) {
        move(model, layer, stream, passes + 1 / static_cast<double>(layers_), "refit");
      }
    }
    if (options_.progress) options_.progress(1, "refit");
    return model;
  }

  // The layer's new tensors, named behind the attention's prefix.
  io::NamedTensors refit_layer(const Llama& model, std::int64_t layer, const Seen& seen) const {
    const Router& router = routers_[layer];
    io::NamedTensors weights = {{"wg.weight", router.weight}, {"wg.bias", router.bias}};
    const Tensor scores = layers::linear_scores(seen.input, router.weight, router.bias);
    layers::LinearChoice choice{.top_k = model.config().top_k(layer) / group_, .weighted = options_.weighted};
    if (model.config().moh->by_threshold()) {
      Json own = model.config().moh->own;
      own["thresholds"][layer] = layer_thresholds(scores, shares_[layer]);
      choice.threshold = layers::layer_threshold(own, layer);
      weights.emplace_back("thresholds", at::tensor(own["thresholds"][layer].get<std::vector<double>>(),
                                                    at::TensorOptions(at::kDouble)));
    }
    const Tensor gates = layers::route_linear(scores, choice).gates;
    const Tensor projection = parameter(dense_, prefix(layer) + "o_proj.weight");
    OutputWeights outputs{projection, {}, {}};
    if (options_.refit) {
      outputs = refit_outputs(seen.heads, gates, projection, options_.mean_heads);
    } else if (options_.mean_heads) {
      outputs = mean_outputs(seen.heads, gates, projection);
    }
    weights.emplace_back("o_proj.weight", rounded(outputs.projection));
    if (options_.mean_heads) {
      weights.emplace_back("head_mean.weight", rounded(outputs.mean));
      weights.emplace_back("head_mean.bias", rounded(outputs.mean_bias));
    }
    return weights;
  }

  const Llama& dense_;
  const RecipeOptions& options_;
  const std::int64_t length_, windows_, group_, choices_, layers_;
  const Journal statistics_, journal_;
  std::vector<Tensor> ids_;
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
