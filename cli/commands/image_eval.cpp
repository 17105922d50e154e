#include "cli/commands/image_eval.h"

#include <fmt/format.h>

#include <memory>
#include <optional>

#include "cli/progress.h"
#include "moh/eval/image_metrics.h"
#include "moh/io/feature_file.h"

namespace moh::cli {
namespace {

struct Options {
  std::string generated, real;
  std::int64_t neighbours = 3, parts = 10;
};

using Arrays = std::map<std::string, at::Tensor>;

const at::Tensor* find(const Arrays& arrays, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const auto found = arrays.find(name); found != arrays.end()) return &found->second;
  }
  return nullptr;
}

const at::Tensor* pooled(const Arrays& arrays) { return find(arrays, {"features", "pool_3", "pool", ""}); }

// From statistics that the file holds, or from its features; nullopt: it has neither.
std::optional<eval::FeatureStatistics> statistics(const Arrays& arrays, const char* mean, const char* covariance,
                                                  const at::Tensor* features) {
  const at::Tensor *m = find(arrays, {mean}), *c = find(arrays, {covariance});
  if (m != nullptr && c != nullptr) {
    MOH_CHECK(m->dim() == 1 && c->dim() == 2 && c->size(0) == m->size(0) && c->size(1) == m->size(0),
              "[image metrics] ", mean, " and ", covariance, " must be [D] and [D, D], got ", m->sizes(), " and ",
              c->sizes());
    return eval::FeatureStatistics{m->to(at::kDouble), c->to(at::kDouble)};
  }
  if (features == nullptr) return std::nullopt;
  return eval::feature_statistics(features->dim() > 2 ? features->flatten(1) : *features);
}

int run(const Context& context, const Options& options) {
  end_at_once_when_interrupted();
  MOH_CHECK(!options.real.empty(), "[image metrics] --real is missing: features of real pictures");
  const Arrays generated = io::load_arrays(options.generated), real = io::load_arrays(options.real);
  Json line = Json::object();
  const at::Tensor *real_features = pooled(real), *generated_features = pooled(generated);
  const auto a = statistics(real, "mu", "sigma", real_features);
  const auto b = statistics(generated, "mu", "sigma", generated_features);
  MOH_CHECK(a && b, "[image metrics] ", a ? options.generated : options.real,
            " holds no features: expected one array in a .npy, or `features` (or `mu` and `sigma`) in a .npz");
  line["frechet_distance"] = eval::frechet_distance(*a, *b);
  const auto spatial_a = statistics(real, "mu_s", "sigma_s", find(real, {"spatial"}));
  const auto spatial_b = statistics(generated, "mu_s", "sigma_s", find(generated, {"spatial"}));
  if (spatial_a && spatial_b) line["spatial_frechet_distance"] = eval::frechet_distance(*spatial_a, *spatial_b);
  if (const at::Tensor* probabilities = find(generated, {"probabilities", "softmax"})) {
    const auto score = eval::inception_score(*probabilities, options.parts);
    line["inception_score"] = score.mean;
    line["inception_score_deviation"] = score.deviation;
  }
  if (real_features != nullptr && generated_features != nullptr) {
    Progress progress("precision and recall");
    const auto both = eval::precision_recall(*real_features, *generated_features, options.neighbours,
                                             [&](double done) { progress.update(done); });
    progress.finish();
    line["precision"] = both.precision;
    line["recall"] = both.recall;
    line["n"] = generated_features->size(0);
  }
  context.emit(line);
  if (!context.json) {
    for (const auto& item : line.items()) {
      context.say(fmt::format("{:<28} {}", item.key(),
                              item.value().is_number_integer() ? std::to_string(item.value().get<std::int64_t>())
                                                               : fmt::format("{:.4f}", item.value().get<double>())));
    }
  }
  return 0;
}

}  // namespace

Run setup_image_eval(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  const char* group = "pictures";
  app.add_option("--generated", options->generated,
                 "features of generated pictures: .npy [N, D], or .npz with features, spatial, probabilities")
      ->group(group);
  app.add_option("--real", options->real, "the same of real ones; mu, sigma, mu_s, sigma_s will do for the distances")
      ->group(group);
  app.add_option("--neighbours", options->neighbours, "of precision and recall")->group(group);
  app.add_option("--parts", options->parts, "that the inception score is averaged over")->group(group);
  return [options, &context] { return run(context, *options); };
}

}  // namespace moh::cli
