// moh classify MODEL IMAGE...: the likeliest classes of pictures.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/commands/vit_commands.h"
#include "moh/base/activity.h"
#include "moh/eval/image_classification.h"
#include "moh/io/folder_walk.h"
#include "moh/ops/autocast.h"
#include "moh/ops/memory_pool.h"

namespace moh::cli {
namespace {

struct Options {
  std::string model, seen;
  std::vector<std::string> images;
  std::int64_t top = 5;
  VitUse vit;
};

// Pictures named, and those of folders, in order of their names.
std::vector<std::string> pictures_of(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const auto found = io::files_in(path, /*deep=*/true, io::is_picture_name).paths;
    MOH_CHECK(!found.empty(), "[classify] folder ", path, " has no JPEG or PNG file");
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

int classify(const Context& context, Options options) {
  const Interruptible interruptible(interrupted);
  MOH_CHECK(options.top > 0, "[classify] --top must be positive, got ", options.top);
  MOH_CHECK(
      is_vit_folder(options.model), "[classify] ", options.model,
      " is not a folder of a vision transformer (config.json with model_type moh-vit); `moh convert` makes one of a "
      "checkpoint");
  options.images = pictures_of(options.images);
  const ops::MemoryPool pool;  // every picture is like the last
  const models::Vit model = open_vit(context, options.model, options.vit);
  const models::VitConfig& config = model.config();
  const auto format = eval::picture_format(config);
  const c10::NoGradGuard no_grad;
  std::size_t failed = 0;
  for (const std::string& file : options.images) {
    at::Tensor picture;
    try {
      const io::Image image = io::load_image(file);
      picture = eval::picture_tensor(image, format);
      if (!options.seen.empty()) io::save_png(options.seen, data::evaluation_picture(image, format));
    } catch (const Error& error) {
      if (options.images.size() == 1) throw;
      context.say(fmt::format("{}: {}", file, error.what()));
      ++failed;
      continue;
    }
    const ops::Autocast autocast(context.autocast_type(), model.device().type());
    const at::Tensor logits = model.forward({.images = picture.unsqueeze(0).to(model.device())}).logits;
    const at::Tensor probabilities = at::softmax(logits[0], -1, at::kFloat).cpu();
    const auto [values, places] = probabilities.topk(std::min(options.top, config.num_classes));
    Json line = Json::object();
    line["file"] = file;
    line["top"] = Json::array();
    std::string text;
    for (std::int64_t i = 0; i < values.size(0); ++i) {
      const auto place = places[i].item<std::int64_t>();
      const std::string name = config.classes.empty() ? std::to_string(place) : config.classes[place];
      const double probability = values[i].item<double>();
      line["top"].push_back({{"class", name}, {"probability", probability}});
      text += fmt::format("{}{} {:.1f} %", i > 0 ? ", " : "", name, 100 * probability);
    }
    context.emit(line);
    if (!context.json) context.say(fmt::format("{}: {}", file, text));
  }
  if (!options.seen.empty()) context.say("wrote " + options.seen);
  MOH_CHECK(failed < options.images.size(), "[classify] none of the ", failed, " pictures could be read");
  return 0;
}

const Registered registered{
    {"classify", "classes of pictures, by a vision transformer", [](CLI::App& app, Context& context) -> Run {
       auto options = std::make_shared<Options>();
       app.add_option("model", options->model, "model folder")->required();
       app.add_option("images", options->images, "JPEG or PNG files, or folders of them")
           ->required()
           ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
       app.add_option("--top", options->top, "classes to name");
       options->vit.add_options(app);
       app.add_option("--seen", options->seen, "write the last picture as the model sees it, a PNG file");
       return [options, &context] { return classify(context, *options); };
     }}};

}  // namespace
}  // namespace moh::cli
