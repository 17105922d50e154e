// moh train for DiT presets: an ImageFolder's pixels, or latents of it that are encoded once.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "cli/commands/language_training.h"
#include "cli/commands/training_kind.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "moh/base/activity.h"
#include "moh/data/latent_cache.h"
#include "moh/data/picture_folder.h"
#include "moh/generate/pictures.h"
#include "moh/io/checkpoint.h"
#include "moh/models/dit_folder.h"
#include "moh/ops/autocast.h"
#include "moh/train/dit_task.h"

namespace moh::cli {
namespace {

constexpr const char* kGroup = "DiT";

struct DitRun {
  std::string preset, data, valid, out, vae, latents;
  bool pixels = false, flip = true;
  std::int64_t illustrate_every = 0, sheet_count = 40, sheet_columns = 10;
  std::string sheet_sampler = "dpm++", sheet_steps = "25";
  double cfg_scale = 1.5;

  template <class V>
  void fields(V& visit) {
    visit("preset", preset, "configuration of a new model, see `moh info`");
    visit("data", data, "folder with one subfolder of pictures per class");
    visit("valid", valid, "validation data of the same kind");
    visit("out", out, "training folder");
    visit("vae", vae, "folder of Stable Diffusion's autoencoder (AutoencoderKL); latents are encoded once");
    visit("latents", latents, "folder of the latent cache (default: OUT/latents)");
    visit("pixels", pixels, "train a latent preset on pixels instead, input_size pixels square");
    visit("flip", flip, "mirror half of the examples");
    visit("illustrate_every", illustrate_every, "steps between sheets of samples; 0: none");
    visit("sheet_count", sheet_count, "pictures on a sheet of samples (--illustrate-every)");
    visit("sheet_columns", sheet_columns, "pictures beside one another");
    visit("sheet_sampler", sheet_sampler, "ddpm, ddim or dpm++");
    visit("sheet_steps", sheet_steps, "steps of its sampling");
    visit("cfg_scale", cfg_scale, "guidance on the sheets; 1: none");
  }
};

// The paper's recipe: constant rate, no decay, no clipping, averaged weights.
train::TrainConfig recipe() {
  train::TrainConfig config;
  config.lr = 1e-4;
  config.final_lr = 1.0;
  config.warmup = 0;
  config.batch = 256;
  config.beta2 = 0.999;
  config.weight_decay = 0;
  config.clip = 0;
  config.ema = 0.9999;
  return config;
}

models::DitConfig model_config(const DitRun& run, const data::PictureSource& source, const Json& sections) {
  models::DitConfig config = models::dit_preset(run.preset);
  const auto shape = source.shape();
  config.in_channels = shape[0];
  config.input_size = shape[1];
  config.num_classes = static_cast<std::int64_t>(source.classes().size());
  config.classes = source.classes();
  if (run.vae.empty()) config.space = "pixel";
  return models::parse_dit_config(with_sections(models::dit_config_json(config), sections, run.preset), "model");
}

void check_run(const DitRun& run, const models::DitConfig& preset, const CLI::App& app) {
  MOH_CHECK(!run.data.empty(), "[train] --data is missing: a folder with one subfolder of pictures per class");
  MOH_CHECK(run.vae.empty() || !run.pixels, "[train] --vae and --pixels exclude one another");
  MOH_CHECK(preset.space == "pixel" || run.pixels || !run.vae.empty(), "[train] preset ", run.preset,
            " denoises latents: give --vae FOLDER, or --pixels to train it on pixels");
  MOH_CHECK(preset.space == "latent" || run.vae.empty(), "[train] preset ", run.preset,
            " denoises pixels; --vae is for latent presets");
  refuse_language_flags<DitRun>(app, run.preset);
}

struct Sources {
  std::shared_ptr<const data::PictureSource> train, valid;
  std::vector<std::string> unreadable;  // what is wrong with pictures that were left out
};

// Null `train`: interrupted.
Sources open_sources(const Context& context, const DitRun& run, const models::DitConfig& preset,
                     const std::optional<models::Vae>& vae) {
  const Json& sections = context.sections;
  std::int64_t size = preset.input_size;
  if (const auto model = sections.find("model"); model != sections.end() && model->contains("input_size")) {
    detail::assign_json(model->at("input_size"), size);
  }
  Sources sources;
  const auto open = [&](const std::string& path,
                        const std::string& cache) -> std::shared_ptr<const data::PictureSource> {
    const auto folder = data::ImageFolder::open(path);
    Progress progress(vae ? "encode" : "read");
    const auto on_done = [&](double done) {
      if (!context.quiet) progress.update(done, fmt::format("{} pictures", folder.items.size()));
      return !interrupted;
    };
    if (!vae) return data::load_pictures(folder, size, on_done, sources.unreadable);
    const auto encode = [&] {
      const std::int64_t side = size * vae->config().reduction();
      return data::make_latent_cache(folder, *vae, side, cache, on_done, sources.unreadable) ? "done" : "interrupted";
    };
    if (group().from_first(encode, "latents") != "done") return nullptr;
    return std::make_shared<data::LatentSource>(cache);
  };
  const std::string cache = run.latents.empty() ? run.out + "/latents" : run.latents;
  sources.train = open(run.data, cache);
  if (sources.train && !run.valid.empty()) {
    sources.valid = open(run.valid, cache + "-valid");
    if (!sources.valid) sources.train = nullptr;
  }
  return sources;
}

// A sheet with the same noise every time, class after class.
std::function<void(const models::Dit&, const std::string&, std::int64_t)> illustrator(
    const DitRun& run, const std::shared_ptr<const models::Vae>& vae, std::uint64_t seed) {
  return [run, vae, seed](const models::Dit& model, const std::string& folder, std::int64_t step) {
    generate::PictureOptions options;
    options.sampler.sampler = run.sheet_sampler;
    options.sampler.steps = run.sheet_steps;
    options.sampler.guidance = run.cfg_scale;
    options.sampler.clip = model.config().space == "pixel";
    diffusion::Pictures pictures;
    pictures.seed = seed;
    for (std::int64_t i = 0; i < run.sheet_count; ++i) {
      pictures.numbers.push_back(i);
      pictures.labels.push_back(i % run.sheet_columns % model.config().num_classes);
    }
    const at::Tensor made = generate::sample_pictures(model, vae.get(), options, pictures,
                                                      [](std::int64_t) { return !interrupted.load(); });
    if (!made.defined()) return;
    std::filesystem::create_directories(folder + "/samples");
    io::save_png(fmt::format("{}/samples/step-{:07}.png", folder, step),
                 generate::sheet_image(made, run.sheet_columns));
  };
}

int train_dit(const CLI::App& app, const Context& context) {
  std::optional<Interruptible> preparing;  // later the trainer stops, and saves
  if (group().alone()) preparing.emplace(interrupted);
  const Json given = given_fields<DitRun>(app);
  const bool resume = app.get_option("--resume")->count() > 0;
  train::TrainConfig config = recipe();
  Json run_json = to_json(DitRun());
  const std::string checkpoint = open_training(context, resume, given.value("out", ""), given,
                                               given_fields<train::TrainConfig>(app), run_json, config);
  DitRun run;
  from_json(run_json, run, "train");
  models::DitConfig preset = models::dit_preset(run.preset);
  check_run(run, preset, app);
  std::optional<models::Dit> resumed;
  if (!checkpoint.empty()) {
    resumed = models::load_dit(checkpoint, "model");
    preset.input_size = resumed->config().input_size;
  }
  std::optional<models::DitConfig> kept;  // of a run that stopped before its first checkpoint: it begins anew
  if (resume && checkpoint.empty()) {
    kept = models::parse_dit_config(io::load_config(run.out), run.out + "/config.json");
    preset.input_size = kept->input_size;
  }
  std::shared_ptr<const models::Vae> vae;
  std::optional<models::Vae> encoder;
  if (!run.vae.empty()) {
    encoder = models::Vae::load(run.vae);
    vae = std::make_shared<models::Vae>(*encoder);
  }
  const Sources sources = open_sources(context, run, preset, encoder);
  if (!sources.train) {
    context.say("interrupted; what is encoded is kept");
    return kInterruptedStatus;
  }
  if (!sources.unreadable.empty()) {
    context.say(fmt::format("{} pictures could not be read and were left out; the first: {}", sources.unreadable.size(),
                            sources.unreadable.front()));
  }
  models::Dit model = resumed
                          ? std::move(*resumed)
                          : models::Dit::initialize(kept ? *kept : model_config(run, *sources.train, context.sections),
                                                    static_cast<std::uint64_t>(config.seed));
  model.to(context.torch_device());
  context.say(fmt::format("{} parameters, {:.1f} % of the heads active, {} pictures of {} classes",
                          with_commas(models::dit_parameter_count(model.config())),
                          100 * model.config().activated_share(), with_commas(sources.train->size()),
                          sources.train->classes().size()));
  train::DitTaskOptions options;
  options.seed = static_cast<std::uint64_t>(config.seed);
  options.autocast = ops::autocast_type(config.dtype);
  options.recompute = config.recompute;
  options.flip = run.flip;
  MOH_CHECK(run.illustrate_every >= 0, "[train] illustrate_every must be at least 0, got ", run.illustrate_every);
  options.illustrate_every = run.illustrate_every;
  options.illustrate = illustrator(run, vae, options.seed);
  const Json model_json = models::dit_config_json(model.config());
  train::DitTask task(std::move(model), sources.train, sources.valid, options);
  preparing.reset();
  return run_training(context, "train", config, task, run.out, checkpoint, run_json, model_json);
}

const RegisteredTrainingKind registered{{kGroup, models::is_dit_preset, [] { return to_json(recipe()); },
                                         [] { return field_names<DitRun>(); },
                                         [](CLI::App& app, Context& context) -> Run {
                                           add_missing_fields<DitRun>(app, kGroup);
                                           return [&app, &context] { return train_dit(app, context); };
                                         }}};

}  // namespace
}  // namespace moh::cli
