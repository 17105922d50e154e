// moh sample: pictures from a DiT, as a sheet, as single files, or as the .npz that FID evaluators read.
#include <ATen/ops/cat.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/progress.h"
#include "moh/base/activity.h"
#include "moh/diffusion/sampler.h"
#include "moh/generate/pictures.h"
#include "moh/io/npz_writer.h"
#include "moh/models/dit_folder.h"
#include "moh/ops/autocast.h"
#include "moh/ops/memory_pool.h"

namespace moh::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model, vae, out = "sample.png", weights = "auto", sampler;
  std::vector<std::string> classes;
  std::int64_t count = 0, batch = 8, columns = 0, first = 0;
  bool all_channels = false, clip = false;
  generate::PictureOptions pictures;
};

// A number, or the name of a class as config.json gives it; "none": without a label.
std::int64_t class_number(const std::string& text, const models::DitConfig& config) {
  const auto named = std::find(config.classes.begin(), config.classes.end(), text);
  if (named != config.classes.end()) return named - config.classes.begin();
  if (text == "none" && config.class_dropout > 0) return config.num_classes;
  const bool is_number = !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number) {
    const std::string near = nearest_name(text, config.classes);
    fail("[sample] unknown class `", text, "`: give a number in 0..", config.num_classes - 1,
         config.classes.empty() ? "" : ", or a name of config.json's `classes`",
         near.empty() ? "" : ", such as `" + near + "`");
  }
  const std::int64_t number = std::stoll(text);
  MOH_CHECK(number < config.num_classes, "[sample] class ", number, " is out of range: the model has 0..",
            config.num_classes - 1);
  return number;
}

enum class Form { kSheet, kFiles, kNpz };

Form form_of(const std::string& out) {
  if (out.ends_with(".npz")) return Form::kNpz;
  if (out.ends_with(".png")) return Form::kSheet;
  MOH_CHECK(fs::path(out).extension().empty() || fs::is_directory(out), "[sample] --out ", out,
            " must end in .png (one sheet) or .npz, or name a folder (single files)");
  return Form::kFiles;
}

// Where pictures go, one batch after another.
class Output {
 public:
  Output(std::string out, std::int64_t count, std::int64_t columns, Json what)
      : out_(std::move(out)), form_(form_of(out_)), count_(count), columns_(columns), what_(std::move(what)) {
    if (form_ == Form::kFiles) fs::create_directories(out_);
    if (form_ != Form::kFiles && fs::path(out_).has_parent_path()) fs::create_directories(fs::path(out_).parent_path());
  }
  // Pictures that an earlier, interrupted run has left.
  std::int64_t done(std::int64_t height, std::int64_t width) {
    if (form_ != Form::kNpz) return 0;
    npz_ = std::make_unique<io::NpzWriter>(out_, std::vector<std::int64_t>{count_, height, width, 3}, what_);
    return npz_->rows_done();
  }
  void add(const at::Tensor& pictures, const std::vector<std::int64_t>& numbers,
           const std::vector<std::int64_t>& labels) {
    if (form_ == Form::kNpz) {
      npz_->append({static_cast<const std::byte*>(pictures.const_data_ptr()), pictures.nbytes()});
    } else if (form_ == Form::kFiles) {
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        io::save_png(fmt::format("{}/{:06}-class-{}.png", out_, numbers[i], labels[i]),
                     generate::sheet_image(pictures[static_cast<std::int64_t>(i)], 1));
      }
    } else {
      kept_.push_back(pictures);
    }
  }
  // `complete`: nothing is missing. Returns what was written, for people.
  std::string finish(bool complete) {
    if (form_ == Form::kNpz) {
      if (!complete)
        return fmt::format("{} of {} pictures are in {}.part; the same command goes on", npz_->rows_done(), count_,
                           out_);
      npz_->finish();
    } else if (form_ == Form::kSheet && !kept_.empty()) {
      io::save_png(out_, generate::sheet_image(at::cat(kept_), columns_));
    }
    return "wrote " + out_;
  }

 private:
  std::string out_;
  Form form_;
  std::int64_t count_, columns_;
  Json what_;
  std::unique_ptr<io::NpzWriter> npz_;
  std::vector<at::Tensor> kept_;
};

// What a begun .npz must have in common with the run that goes on with it.
Json describe(const Options& options, const std::vector<std::int64_t>& labels, std::uint64_t seed) {
  const auto& sampler = options.pictures.sampler;
  Json what = Json::object();
  what["model"] = options.model;
  what["weights"] = options.weights;
  what["vae"] = options.vae;
  what["seed"] = seed;
  what["first"] = options.first;
  what["classes"] = labels;
  what["sampler"] = sampler.sampler;
  what["steps"] = sampler.steps;
  what["eta"] = sampler.eta;
  what["cfg_scale"] = sampler.guidance;
  what["guided_channels"] = sampler.guided_channels;
  what["clip"] = sampler.clip;
  what["dtype"] = options.pictures.autocast ? "16 bit" : "fp32";
  return what;
}

// One label per picture: the classes given, in turn; all classes in turn if none is given.
std::vector<std::int64_t> labels_of(Options& options, const models::DitConfig& config) {
  std::vector<std::int64_t> wanted;
  for (const std::string& text : options.classes) wanted.push_back(class_number(text, config));
  if (wanted.empty()) {
    for (std::int64_t i = 0; i < config.num_classes; ++i) wanted.push_back(i);
  }
  if (options.count == 0) {
    options.count = options.classes.empty() ? 16 : static_cast<std::int64_t>(wanted.size());
  }
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < options.count; ++i) labels.push_back(wanted[(options.first + i) % wanted.size()]);
  return labels;
}

int run_sample(const Context& context, Options options) {
  auto& settings = options.pictures.sampler;
  MOH_CHECK(options.batch > 0 && options.count >= 0 && options.first >= 0,
            "[sample] --batch must be positive, --count and --first at least 0");
  settings.sampler = !options.sampler.empty() ? options.sampler : settings.steps.starts_with("ddim") ? "ddim" : "ddpm";
  settings.clip = options.clip;
  options.pictures.autocast = context.autocast_type();
  models::Dit model = models::load_dit(options.model, options.weights);
  model.to(context.torch_device());
  const auto& config = model.config();
  if (options.all_channels || config.space == "pixel") settings.guided_channels = config.in_channels;
  std::unique_ptr<models::Vae> vae;
  if (!options.vae.empty()) {
    MOH_CHECK(config.space == "latent", "[sample] this model makes pixels; --vae is for latent models");
    vae = std::make_unique<models::Vae>(models::Vae::load(options.vae));
    vae->to(context.torch_device());
  }
  const std::vector<std::int64_t> labels = labels_of(options, config);
  generate::check_pictures(model, vae.get(), options.pictures, labels);
  const std::int64_t steps = diffusion::Sampler(settings).steps();
  const std::int64_t columns =
      options.columns > 0 ? options.columns
                          : static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(options.count))));
  Output output(options.out, options.count, columns, describe(options, labels, context.seed));
  const std::int64_t size = options.pictures.size > 0 ? options.pictures.size : config.input_size;
  const std::int64_t side = size * (vae ? vae->config().reduction() : 1);
  const std::int64_t before = output.done(side, side);
  if (before > 0) context.say(fmt::format("going on after {} pictures", before));

  if (options.sampler.empty() && steps >= 100) {
    context.say(
        fmt::format("{} steps of ddpm, as in the paper; --sampler dpm++ --steps 25 makes pictures alike in a tenth of "
                    "the time",
                    steps));
  }
  const Interruptible interruptible(interrupted);
  Progress progress("sample", "images", static_cast<double>(options.count - before));
  const ops::MemoryPool pool;
  const auto start = std::chrono::steady_clock::now();
  std::int64_t made = before;
  while (made < options.count && !interrupted) {
    diffusion::Pictures batch;
    batch.seed = context.seed;
    for (std::int64_t i = made; i < std::min(made + options.batch, options.count); ++i) {
      batch.numbers.push_back(options.first + i);
      batch.labels.push_back(labels[i]);
    }
    const auto size_of_batch = static_cast<double>(batch.numbers.size());
    at::Tensor pictures;
    try {
      pictures = generate::sample_pictures(model, vae.get(), options.pictures, batch, [&](std::int64_t step) {
        const double share = size_of_batch * static_cast<double>(step) / static_cast<double>(steps);
        progress.update((static_cast<double>(made - before) + share) / static_cast<double>(options.count - before),
                        fmt::format("picture {} of {}, step {} of {}", made + 1, options.count, step, steps));
        return !interrupted.load();
      });
    } catch (const Interrupted&) {  // in the middle of a step
    }
    if (!pictures.defined()) break;
    output.add(pictures, batch.numbers, batch.labels);
    made += static_cast<std::int64_t>(batch.numbers.size());
  }
  progress.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string written = output.finish(made == options.count);
  Json line = Json::object();
  line["images"] = made;
  line["seconds"] = seconds;
  line["images_per_second"] = static_cast<double>(made - before) / std::max(seconds, 1e-9);
  line["out"] = options.out;
  context.emit(line);
  context.say(fmt::format("{}; {} pictures in {:.1f} s", written, made - before, seconds));
  return made == options.count ? 0 : kInterruptedStatus;
}

const Registered registered{
    {"sample", "make pictures with a DiT", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       auto& sampler = options->pictures.sampler;
       app.add_option("model", options->model, "model folder, or a checkpoint of the authors (.pt)")->required();
       app.add_option("--class", options->classes,
                      "classes, numbers or names, taken in turn (default: all); none: no label")
           ->delimiter(',')
           ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       app.add_option("--count", options->count, "pictures (default: one for each --class, else 16)");
       app.add_option("--first", options->first, "number of the first picture: to split a run over machines");
       app.add_option("--steps", sampler.steps, "250; or ddim50, quad20, 10,15,20: how the 1000 steps are walked");
       app.add_option("--sampler", options->sampler, "ddpm, ddim or dpm++ (20 to 30 steps do) (default: ddpm)")
           ->check(CLI::IsMember({"ddpm", "ddim", "dpm++"}));
       app.add_option("--eta", sampler.eta, "ddim: share of fresh noise");
       app.add_option("--cfg-scale", sampler.guidance, "classifier-free guidance; 1: none");
       app.add_flag("--all-channels", options->all_channels, "guide all latent channels, not the first three alone");
       app.add_flag("--clip", options->clip, "keep the predicted picture within [-1, 1] (pixel models)");
       app.add_option("--batch", options->batch, "pictures at a time");
       app.add_option("--size", options->pictures.size, "height and width to denoise; 0: the model's");
       app.add_option("--columns", options->columns, "pictures beside one another on a sheet");
       app.add_option("--vae", options->vae, "autoencoder folder, for latent models");
       app.add_option("--weights", options->weights, "auto: averaged ones if they are there; ema; model")
           ->check(CLI::IsMember({"auto", "ema", "model"}));
       app.add_option("--out", options->out, "sheet.png, pictures.npz (arr_0, uint8 NHWC), or a folder");
       return [options, &context] { return run_sample(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
