// moh features MODEL PICTURES: a feature file for `moh eval --real ... --generated ...`, by a vision transformer.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/commands/vit_commands.h"
#include "cli/progress.h"
#include "moh/eval/picture_features.h"
#include "moh/io/feature_file.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, pictures, out;
  std::int64_t limit = 0;
  eval::FeatureOptions features;
};

int run_features(const Context& context, Options options) {
  MOH_CHECK(options.out.ends_with(".npz"), "[features] --out ", options.out, " must end in .npz");
  MOH_CHECK(is_vit_folder(options.model), "[features] ", options.model,
            " is not a folder of a vision transformer (config.json with model_type moh-vit)");
  models::Vit model = models::Vit::load(options.model, at::kFloat);
  model.to(context.torch_device());
  const auto pictures = eval::open_pictures(options.pictures, options.limit);
  options.features.autocast = context.autocast_type();
  Progress progress("features", "images", static_cast<double>(pictures.count));
  const auto result = eval::picture_features(model, pictures, options.features, [&](double done) {
    progress.update(done);
    return !interrupted.load();
  });
  progress.finish();
  if (!result.features.defined()) return kInterruptedStatus;
  io::save_arrays(options.out, {{"features", result.features}, {"probabilities", result.probabilities}});
  Json line = Json::object();
  const auto images = result.features.size(0);
  line["images"] = images;
  line["skipped"] = result.skipped.size();
  line["dimensions"] = result.features.size(1);
  line["out"] = options.out;
  context.emit(line);
  if (!result.skipped.empty()) {
    context.say(fmt::format("{} pictures cannot be read and are left out; the first: {}", result.skipped.size(),
                            result.skipped.front()));
  }
  context.say(fmt::format("wrote {}: {} pictures, {} features each", options.out, images, result.features.size(1)));
  return 0;
}

const Registered registered{
    {"features", "features of pictures by a vision transformer, to compare generated ones with real ones",
     [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "folder of a vision transformer")->required();
       app.add_option("pictures", options->pictures, "folder of JPEG or PNG files, or .npz of `moh sample`")
           ->required();
       app.add_option("--out", options->out, "feature file, .npz with features and probabilities")->required();
       app.add_option("--limit", options->limit, "pictures at most, spread evenly; 0: all");
       app.add_option("--batch", options->features.batch, "pictures at a time");
       return [options, &context] { return run_features(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
