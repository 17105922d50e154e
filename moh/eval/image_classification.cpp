#include "moh/eval/image_classification.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "moh/base/error.h"
#include "moh/data/ordered_loader.h"
#include "moh/ops/autocast.h"

namespace moh::eval {
namespace {

using at::Tensor;

struct Batch {
  std::vector<float> pictures;
  std::vector<std::int64_t> labels;
  std::vector<std::string> skipped;
};

// What is summed over the folder.
struct Totals {
  double top1 = 0, top5 = 0, loss = 0, active = 0;
  Tensor load, tokens;  // [classes, E] and [classes]: of the last routed layer
};

void add_head_load(const models::VitOutput& output, const Tensor& labels, std::int64_t classes, Totals& totals,
                   std::string& name) {
  for (auto layer = output.layers.rbegin(); layer != output.layers.rend(); ++layer) {
    if (!layer->routing.indices.defined() || layer->routing.indices.numel() == 0) continue;
    const Tensor &indices = layer->routing.indices, &probabilities = layer->routing.probabilities;
    const Tensor chosen =
        at::zeros(probabilities.sizes(), at::TensorOptions(at::kFloat)).scatter(-1, indices.cpu(), 1.0);  // [B, N, E]
    if (!totals.load.defined()) {
      totals.load = at::zeros({classes, chosen.size(2)}, at::TensorOptions(at::kDouble));
      totals.tokens = at::zeros({classes}, at::TensorOptions(at::kDouble));
      name = layer->name;
    }
    totals.load.index_add_(0, labels, chosen.sum(1).to(at::kDouble));
    totals.tokens.index_add_(0, labels,
                             at::full(labels.sizes(), static_cast<double>(chosen.size(1)), totals.tokens.options()));
    return;
  }
}

}  // namespace

data::PictureFormat picture_format(const models::VitConfig& config) {
  return {config.image_size, config.mean, config.std, config.crop};
}

Tensor picture_tensor(const io::Image& image, const data::PictureFormat& format) {
  const io::Image picture = data::evaluation_picture(image, format);
  Tensor tensor = at::empty({3, picture.height, picture.width}, at::TensorOptions(at::kFloat));
  data::normalize_picture(picture, format, tensor.mutable_data_ptr<float>());
  return tensor;
}

double active_share(const models::VitOutput& output) {
  std::vector<Tensor> active;
  double all = 0;
  for (const auto& layer : output.layers) {
    if (!layer.routing.gates.defined()) continue;
    const Tensor& gates = layer.routing.gates;  // layers have different numbers of tokens: each counts by its heads
    const auto heads = static_cast<double>(gates.size(-1));
    all += heads;
    active.push_back(gates.ne(0).to(at::kFloat).mean().to(at::kDouble) * heads);
  }
  return all > 0 ? at::stack(active).sum().item<double>() / all : 1;
}

void check_classes(const models::VitConfig& config, const data::ImageFolder& folder) {
  const auto count = static_cast<std::int64_t>(folder.classes.size());
  MOH_CHECK(count == config.num_classes, "[image folder] ", folder.root, " has ", count,
            " class folders, but the model tells ", config.num_classes, " classes apart");
  for (std::int64_t i = 0; i < count && !config.classes.empty(); ++i) {
    MOH_CHECK(folder.classes[i] == config.classes[i], "[image folder] ", folder.root, ": class ", i, " is `",
              folder.classes[i], "`, but `", config.classes[i], "` in the model");
  }
}

ClassificationResult classify_folder(const models::Vit& model, const data::ImageFolder& folder,
                                     const ClassificationOptions& options,
                                     const std::function<void(double done)>& progress) {
  const models::VitConfig& config = model.config();
  check_classes(config, folder);
  MOH_CHECK(options.batch > 0, "[eval] batch must be positive, got ", options.batch);
  const auto all = static_cast<std::int64_t>(folder.items.size());
  const std::int64_t wanted = options.max_images > 0 ? std::min(options.max_images, all) : all;
  const data::PictureFormat format = picture_format(config);
  const std::int64_t pixels = 3 * format.size * format.size, batches = (wanted + options.batch - 1) / options.batch;

  data::OrderedLoader<Batch> loader(
      [&](std::int64_t turn) {
        const std::int64_t number = turn * options.parts + options.part;
        Batch batch;
        for (std::int64_t i = number * options.batch; i < std::min((number + 1) * options.batch, wanted); ++i) {
          const auto& item = folder.items[i * all / wanted];
          try {
            const io::Image picture = data::evaluation_picture(io::load_image(item.path), format);
            batch.pictures.resize(batch.pictures.size() + pixels);
            data::normalize_picture(picture, format, batch.pictures.data() + batch.pictures.size() - pixels);
            batch.labels.push_back(item.label);
          } catch (const Error& error) {
            batch.skipped.emplace_back(error.what());
          }
        }
        return batch;
      },
      0, options.workers, options.workers + 1);

  const c10::NoGradGuard no_grad;
  ClassificationResult result;
  Totals totals;
  for (std::int64_t number = options.part; number < batches; number += options.parts) {
    Batch batch = loader.take();
    result.skipped.insert(result.skipped.end(), batch.skipped.begin(), batch.skipped.end());
    const auto count = static_cast<std::int64_t>(batch.labels.size());
    if (count == 0) continue;
    if (progress) progress(static_cast<double>(number + 1) / static_cast<double>(batches));
    const Tensor images = at::from_blob(batch.pictures.data(), {count, 3, format.size, format.size}, at::kFloat);
    const Tensor labels = at::tensor(batch.labels, at::TensorOptions(at::kLong));
    const ops::Autocast autocast(options.autocast, model.device().type());
    const auto output = model.forward({.images = images.to(model.device())});
    const Tensor logits = output.logits.to(at::kFloat).cpu();
    const std::int64_t best = std::min<std::int64_t>(5, config.num_classes);
    const Tensor hits = std::get<1>(logits.topk(best, -1)).eq(labels.unsqueeze(1)).to(at::kDouble);  // [B, 5]
    totals.top1 += hits.select(1, 0).sum().item<double>();
    totals.top5 += hits.sum().item<double>();
    totals.loss += at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum).item<double>();
    totals.active += active_share(output) * static_cast<double>(count);
    add_head_load(output, labels, config.num_classes, totals, result.head_load_layer);
    result.images += count;
  }
  if (options.parts > 1) {
    std::vector<double> sums = {totals.top1, totals.top5, totals.loss, totals.active,
                                static_cast<double>(result.images)};
    options.sum(sums);
    totals.top1 = sums[0];
    totals.top5 = sums[1];
    totals.loss = sums[2];
    totals.active = sums[3];
    result.images = static_cast<std::int64_t>(sums[4]);
  }
  MOH_CHECK(result.images > 0, "[eval] none of the ", wanted, " pictures of ", folder.root,
            " could be read; first: ", result.skipped.empty() ? "" : result.skipped[0]);
  const auto images = static_cast<double>(result.images);
  result.top1 = totals.top1 / images;
  result.top5 = totals.top5 / images;
  result.loss = totals.loss / images;
  result.active_heads = totals.active / images;
  if (totals.load.defined()) {
    const Tensor share = (totals.load / totals.tokens.clamp_min(1).unsqueeze(1)).contiguous();
    for (std::int64_t i = 0; i < share.size(0); ++i) {
      const double* const row = share.const_data_ptr<double>() + i * share.size(1);
      result.head_load.emplace_back(row, row + share.size(1));
    }
  }
  return result;
}

}  // namespace moh::eval
