#include "moh/train/image_task.h"

#include <ATen/ATen.h>

#include <chrono>
#include <map>
#include <mutex>
#include <numeric>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/data/epoch_order.h"
#include "moh/data/ordered_loader.h"
#include "moh/data/random.h"
#include "moh/ops/autocast.h"
#include "moh/train/shared_balance.h"

namespace moh::train {

using at::Tensor;

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kOrderStream = 1, kPictureStream = 2, kMixStream = 3;  // of the seed

struct Batch {
  std::vector<float> pictures, targets;
};

// This process's pictures of a batch of `count`, as places in it. Mixing pairs place i with place count - 1 - i, so
// pairs are shared out: in the result, too, partners stand at the same distance from both ends.
std::vector<std::int64_t> own_places(std::int64_t count, const distributed::Group& group) {
  const auto [first, end] = group.share((count + 1) / 2);
  std::vector<std::int64_t> places;
  for (std::int64_t i = first; i < end; ++i) places.push_back(i);
  for (std::int64_t i = end; i-- > first;) {
    if (i < count - 1 - i) places.push_back(count - 1 - i);
  }
  return places;
}

}  // namespace

// Batches made ahead by threads. Everything in a batch follows from its position alone.
struct ImageTask::Loader {
  const data::ImageFolder& folder;
  const ImageTaskOptions& options;
  data::PictureFormat format;
  std::int64_t classes;
  std::int64_t count = 0;            // pictures a batch
  std::vector<std::int64_t> places;  // of it, which this process makes
  std::int64_t offset = 0;           // of batch 0: a run that was resumed with another batch size begins anywhere
  Clock::time_point since = Clock::now();
  double paused = 0;  // seconds of validation, during which nobody takes

  mutable std::mutex mutex;
  std::map<std::int64_t, std::vector<std::int32_t>> orders;  // by epoch; the newest few
  std::map<std::int64_t, std::string> broken;                // picture, its error

  // The last member, so that its threads end before what they use.
  std::unique_ptr<data::OrderedLoader<Batch>> batches;

  Loader(const data::ImageFolder& from, const ImageTaskOptions& with, const models::VitConfig& config)
      : folder(from), options(with), format(eval::picture_format(config)), classes(config.num_classes) {}

  std::int64_t size() const { return static_cast<std::int64_t>(folder.items.size()); }

  std::int64_t picture_at(std::int64_t position) {
    const std::int64_t epoch = position / size(), place = position % size() / options.augment.repeats;
    const std::lock_guard lock(mutex);
    auto& order = orders[epoch];
    if (order.empty()) {
      data::Random random(options.seed + kOrderStream, static_cast<std::uint64_t>(epoch));
      order = data::shuffled<std::int32_t>(size(), [&](std::int64_t count) { return random.below(count); });
    }
    const std::int64_t picture = order[place];
    while (orders.size() > 2) orders.erase(orders.begin()->first == epoch ? --orders.end() : orders.begin());
    return picture;
  }

  // The picture of a position, or the next one in the folder that can be read.
  std::int64_t read(std::int64_t picture, io::Image& image) {
    constexpr int kAttempts = 100;
    for (int attempt = 0; attempt < kAttempts; ++attempt, picture = (picture + 1) % size()) {
      {
        const std::lock_guard lock(mutex);
        if (broken.contains(picture)) continue;
      }
      try {
        image = io::load_image(folder.items[picture].path);
        return picture;
      } catch (const Error& error) {
        const std::lock_guard lock(mutex);
        broken.emplace(picture, error.what());
      }
    }
    const std::lock_guard lock(mutex);
    fail("[train] ", kAttempts, " pictures one after another cannot be read; the last: ", broken.rbegin()->second);
  }

  Batch make(std::int64_t number) {
    const std::int64_t pixels = 3 * format.size * format.size;
    Batch batch;
    const auto own = static_cast<std::int64_t>(places.size());
    batch.pictures.resize(static_cast<std::size_t>(own * pixels));
    std::vector<std::int64_t> labels;
    for (std::int64_t i = 0; i < own; ++i) {
      const std::int64_t position = offset + number * count + places[i];
      io::Image image;
      const std::int64_t picture = read(picture_at(position), image);
      data::Random random(options.seed + kPictureStream, static_cast<std::uint64_t>(position));
      float* const to = batch.pictures.data() + i * pixels;
      data::normalize_picture(data::training_picture(image, format, options.augment, random), format, to);
      data::erase_rectangle(to, format.size, options.augment, random);
      labels.push_back(folder.items[picture].label);
    }
    data::Random random(options.seed + kMixStream, static_cast<std::uint64_t>(number));
    const data::Mix mix = data::draw_mix(options.augment, format.size, random);
    data::mix_batch(batch.pictures.data(), own, format.size, mix);
    batch.targets = data::mixed_targets(labels, classes, mix, options.augment.label_smoothing);
    return batch;
  }

  Batch take(std::int64_t position, std::int64_t wanted, const std::vector<std::int64_t>& own) {
    if (!batches || count != wanted || offset != position % wanted || batches->next() != position / wanted) {
      batches.reset();
      count = wanted;
      places = own;
      offset = position % wanted;
      batches = std::make_unique<data::OrderedLoader<Batch>>([this](std::int64_t number) { return make(number); },
                                                             position / wanted, options.workers, options.workers + 1);
      since = Clock::now();
      paused = 0;
    }
    return batches->take();
  }

  // Share of the time so far that training waited for pictures.
  double waiting_share() const {
    const double elapsed = std::chrono::duration<double>(Clock::now() - since).count() - paused;
    return batches && elapsed > 0 ? batches->waited() / elapsed : 0;
  }
};

ImageTask::ImageTask(models::Vit model, data::ImageFolder train, std::optional<data::ImageFolder> valid,
                     ImageTaskOptions options)
    : model_(std::move(model)), train_(std::move(train)), valid_(std::move(valid)), options_(std::move(options)) {
  data::check_augment_config(options_.augment);
  eval::check_classes(model_.config(), train_);
  if (valid_) eval::check_classes(model_.config(), *valid_);
  model_.set_requires_grad(true);
  loader_ = std::make_unique<Loader>(train_, options_, model_.config());
}

ImageTask::~ImageTask() = default;

std::int64_t ImageTask::picture_at(std::int64_t position) { return loader_->picture_at(position); }

std::vector<std::string> ImageTask::skipped() const {
  const std::lock_guard lock(loader_->mutex);
  std::vector<std::string> errors;
  for (const auto& [picture, error] : loader_->broken) errors.push_back(error);
  return errors;
}

BatchLoss ImageTask::loss(std::int64_t position, std::int64_t count) {
  const std::vector<std::int64_t> places = own_places(count, group());
  const auto own = static_cast<std::int64_t>(places.size());
  MOH_CHECK(own > 0, "[train] ", count, " pictures at a time are too few for ", group().size(),
            " processes, each of which needs two");
  Batch batch = loader_->take(position, count, places);
  // Copied: the backward pass reads both after `batch` is gone.
  const auto copied = [&](std::vector<float>& values, at::IntArrayRef shape) {
    return at::from_blob(values.data(), shape, at::kFloat).clone().to(model_.device());
  };
  const std::int64_t size = model_.config().image_size;
  const Tensor images = copied(batch.pictures, {own, 3, size, size});
  const Tensor targets = copied(batch.targets, {own, model_.config().num_classes});
  const ops::Autocast autocast(options_.autocast, model_.device().type());
  const ops::BalanceTerms terms;
  models::VitInput input{.images = images, .training = true, .recompute = options_.recompute};
  if (!group().alone()) input.drawn = {count, at::tensor(places, at::TensorOptions(at::kLong))};
  auto output = model_.forward(input);
  const Tensor cross_entropy = -(targets * at::log_softmax(output.logits, -1, /*dtype=*/at::kFloat)).sum(-1).mean();

  BatchLoss result;
  result.items = own;
  result.share = static_cast<double>(own) / static_cast<double>(count);
  result.loss = cross_entropy.item<double>();
  result.active_heads = eval::active_share(output);
  result.objective = cross_entropy;
  if (!group().alone()) output.load_balance_loss = shared_balance_loss(terms, result.share, group());
  if (output.load_balance_loss.defined()) {
    result.load_balance_loss = output.load_balance_loss.item<double>();
    result.objective = result.objective + output.load_balance_loss * model_.config().moh->beta;
  }
  const std::lock_guard lock(loader_->mutex);
  result.extra.emplace_back("loader_share", loader_->waiting_share());
  if (!loader_->broken.empty()) result.extra.emplace_back("skipped", static_cast<double>(loader_->broken.size()));
  return result;
}

std::optional<Validation> ImageTask::validate() {
  if (!valid_) return std::nullopt;
  const auto start = Clock::now();
  const auto result =
      eval::classify_folder(model_, *valid_,
                            {.max_images = options_.valid_images,
                             .workers = options_.workers,
                             .autocast = options_.autocast,
                             .part = group().rank(),
                             .parts = group().size(),
                             .sum = [&](std::vector<double>& values) { group().sum(values, "validation"); }},
                            [](double done) { report_activity({"validating", done, 1}); });
  loader_->paused += std::chrono::duration<double>(Clock::now() - start).count();
  Validation validation;
  validation.loss = result.loss;
  validation.active_heads = result.active_heads;
  validation.scores = {{"top1", result.top1}, {"top5", result.top5}};
  return validation;
}

void ImageTask::save_model(const std::string& folder) const { model_.save(folder); }

}  // namespace moh::train
