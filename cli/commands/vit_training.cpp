// moh train for vision transformers: an image folder, the paper's augmentation and optimizer.
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "cli/commands/language_training.h"
#include "cli/commands/training_kind.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "moh/base/activity.h"
#include "moh/io/checkpoint.h"
#include "moh/ops/autocast.h"
#include "moh/ops/memory_pool.h"
#include "moh/train/image_task.h"

namespace moh::cli {
namespace {

constexpr const char* kGroup = "ViT";

struct VitRun {
  std::string preset, data, valid, out;
  std::int64_t workers = 2, valid_images = 0;

  template <class V>
  void fields(V& visit) {
    visit("preset", preset, "configuration of a new model, see `moh info`");
    visit("data", data, "folder with one subfolder of pictures per class");
    visit("valid", valid, "validation data of the same kind");
    visit("out", out, "training folder");
    visit("workers", workers, "threads that read and augment pictures");
    visit("valid_images", valid_images, "pictures of the validation folder, spread over it; 0: all");
  }
};

// The paper's optimizer (spec, section 2); steps and warm-up depend on the data.
train::TrainConfig recipe() {
  train::TrainConfig config;
  config.batch = 128;
  config.lr = 1e-3;
  config.final_lr = 0.01;
  config.warmup_lr = 1e-6;
  config.beta2 = 0.999;
  config.weight_decay = 0.05;
  config.clip = 1.0;
  return config;
}

models::VitConfig model_config(const VitRun& run, const data::ImageFolder& folder, const Json& sections) {
  models::VitConfig config = models::vit_preset(run.preset);
  config.num_classes = static_cast<std::int64_t>(folder.classes.size());
  config.classes = folder.classes;
  return models::parse_vit_config(with_sections(models::vit_config_json(config), sections, run.preset), "model");
}

int train_vit(const CLI::App& app, const Context& context) {
  std::optional<Interruptible> preparing;  // later the trainer stops, and saves
  if (group().alone()) preparing.emplace(interrupted);
  const Json given = given_fields<VitRun>(app), given_augment = given_fields<data::AugmentConfig>(app);
  const bool resume = app.get_option("--resume")->count() > 0;
  train::TrainConfig config = recipe();
  Json run_json = to_json(VitRun());
  run_json["augment"] = to_json(data::AugmentConfig());
  const std::string checkpoint = open_training(context, resume, given.value("out", ""), given,
                                               given_fields<train::TrainConfig>(app), run_json, config);
  train::ImageTaskOptions options;
  from_json(run_json["augment"], options.augment, "train: augment");
  from_json(given_augment, options.augment, "train");
  run_json["augment"] = to_json(options.augment);
  data::check_augment_config(options.augment);
  VitRun run;
  Json plain = run_json;
  plain.erase("augment");
  from_json(plain, run, "train");
  refuse_language_flags<VitRun>(app, run.preset);
  MOH_CHECK(!run.data.empty(), "[train] --data is missing: a folder with one subfolder of pictures per class");
  MOH_CHECK(run.workers >= 0 && run.workers <= 256, "[train] workers must be in 0..256, got ", run.workers);

  const ops::MemoryPool pool;  // every step is like the last
  data::ImageFolder folder = data::ImageFolder::open(run.data);
  std::optional<data::ImageFolder> valid;
  if (!run.valid.empty()) valid = data::ImageFolder::open(run.valid);
  const auto new_model = [&] {  // a run that stopped before its first checkpoint begins anew, its folder has the sizes
    const models::VitConfig model = resume
                                        ? models::parse_vit_config(io::load_config(run.out), run.out + "/config.json")
                                        : model_config(run, folder, context.sections);
    return models::Vit::initialize(model, static_cast<std::uint64_t>(config.seed));
  };
  models::Vit model = checkpoint.empty() ? new_model() : models::Vit::load(checkpoint, at::kFloat);
  model.to(context.torch_device());
  context.say(fmt::format("{} parameters, {:.1f} % of the heads active, {} pictures of {} classes",
                          with_commas(model.num_parameters()), 100 * model.config().activated_share(),
                          with_commas(static_cast<std::int64_t>(folder.items.size())), folder.classes.size()));
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.autocast = ops::autocast_type(config.dtype);
  options.recompute = config.recompute;
  options.workers = static_cast<int>(run.workers);
  options.valid_images = run.valid_images;
  // Drop path draws from the default generator, whose state a checkpoint keeps.
  if (checkpoint.empty()) {
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    generator.set_current_seed(options.seed);
  }
  const Json model_json = models::vit_config_json(model.config());
  train::ImageTask task(std::move(model), std::move(folder), std::move(valid), options);
  preparing.reset();
  const int status = run_training(context, "train", config, task, run.out, checkpoint, run_json, model_json);
  if (const auto skipped = task.skipped(); !skipped.empty()) {
    context.say(
        fmt::format("{} pictures could not be read and were skipped; the first: {}", skipped.size(), skipped[0]));
  }
  return status;
}

const RegisteredTrainingKind registered{{kGroup, models::is_vit_preset, [] { return to_json(recipe()); },
                                         [] { return field_names<VitRun>(); },
                                         [](CLI::App& app, Context& context) -> Run {
                                           add_missing_fields<VitRun>(app, kGroup);
                                           add_missing_fields<data::AugmentConfig>(app, kGroup);
                                           return [&app, &context] { return train_vit(app, context); };
                                         }}};

}  // namespace
}  // namespace moh::cli
