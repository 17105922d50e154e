#include "moh/train/dit_task.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/diffusion/gaussian.h"
#include "moh/models/dit_folder.h"
#include "moh/ops/autocast.h"
#include "moh/train/shared_balance.h"

namespace moh::train {

using at::Tensor;

namespace {

void check_source(const data::PictureSource& source, const models::DitConfig& config, const char* what) {
  const std::vector<std::int64_t> expected = {config.in_channels, config.input_size, config.input_size};
  MOH_CHECK(source.shape() == expected, "[train] ", what, " is ", at::IntArrayRef(source.shape()),
            ", the model denoises ", at::IntArrayRef(expected));
  for (std::int64_t i = 0; i < source.size(); ++i) {
    MOH_CHECK(source.label(i) >= 0 && source.label(i) < config.num_classes, "[train] class ", source.label(i), " of ",
              what, " does not fit into the model's ", config.num_classes, " classes");
  }
}

double active_share(const models::DitOutput& output, const models::DitConfig& config) {
  if (!config.moh) return 1.0;
  std::vector<Tensor> gates;
  for (const auto& routing : output.routing) gates.push_back(routing.gates);
  return ops::active_share(gates);
}

}  // namespace

DitTask::DitTask(models::Dit model, std::shared_ptr<const data::PictureSource> train,
                 std::shared_ptr<const data::PictureSource> valid, DitTaskOptions options)
    : model_(std::move(model)),
      train_(std::move(train)),
      valid_(std::move(valid)),
      options_(std::move(options)),
      schedule_(diffusion::linear_schedule()),
      order_(train_->size(), options_.seed) {
  check_source(*train_, model_.config(), "the training data");
  if (valid_) check_source(*valid_, model_.config(), "the validation data");
  model_.set_requires_grad(true);
}

DitTask::Batch DitTask::batch(const data::PictureSource& source, const std::vector<std::int64_t>& indices,
                              std::uint64_t seed, std::int64_t position, bool training) const {
  const auto& config = model_.config();
  std::vector<Tensor> pictures, noise;
  std::vector<std::int64_t> steps, labels;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const at::Generator random =
        at::detail::createCPUGenerator(data::example_seed(seed, static_cast<std::uint64_t>(position) + i));
    const Tensor chances = at::rand({2}, random, at::TensorOptions(at::kFloat));
    const bool flip = training && options_.flip && chances[0].item<float>() < 0.5F;
    const bool hide = training && chances[1].item<float>() < static_cast<float>(config.class_dropout);
    pictures.push_back(source.example(indices[i], flip, random));
    steps.push_back(at::randint(schedule_.steps(), {1}, random, at::TensorOptions(at::kLong)).item<std::int64_t>());
    noise.push_back(at::randn(pictures.back().sizes(), random, at::TensorOptions(at::kFloat)));
    labels.push_back(hide ? config.num_classes : source.label(indices[i]));
  }
  const at::Device device = model_.device();
  const at::TensorOptions integers(at::kLong);
  return {at::stack(pictures).to(device), at::stack(noise).to(device), at::tensor(steps, integers),
          at::tensor(labels, integers).to(device)};
}

BatchLoss DitTask::loss_of(const Batch& batch, double share) const {
  const Tensor x_t = diffusion::add_noise(schedule_, batch.x_start, batch.t, batch.noise);
  models::DitOutput output;
  const ops::BalanceTerms balance;
  {
    const ops::Autocast autocast(options_.autocast, model_.device().type());
    output = model_.forward(x_t, batch.t.to(model_.device()), batch.labels, /*balance_loss=*/true, options_.recompute);
  }
  const auto terms = diffusion::training_loss(
      schedule_, output.y, batch.x_start, x_t, batch.t, batch.noise,
      model_.config().predicts_velocity() ? diffusion::Target::kVelocity : diffusion::Target::kNoise);
  BatchLoss loss;
  loss.objective = terms.loss.mean();
  loss.loss = loss.objective.item<double>();
  if (share < 1) output.load_balance_loss = shared_balance_loss(balance, share, group());
  if (output.load_balance_loss.defined()) {
    loss.load_balance_loss = output.load_balance_loss.item<double>();
    loss.objective = loss.objective + output.load_balance_loss * model_.config().moh->beta;
  }
  loss.active_heads = active_share(output, model_.config());
  loss.items = batch.x_start.size(0);
  loss.share = share;
  return loss;
}

BatchLoss DitTask::loss(std::int64_t position, std::int64_t count) {
  const auto [first, end] = group().share(count);
  MOH_CHECK(end > first, "[train] ", count, " pictures at a time are too few for ", group().size(), " processes");
  std::vector<std::int64_t> indices;
  for (std::int64_t i = first; i < end; ++i) indices.push_back(order_(position + i));
  return loss_of(batch(*train_, indices, options_.seed, position + first, /*training=*/true),
                 static_cast<double>(end - first) / static_cast<double>(count));
}

std::optional<Validation> DitTask::validate() {
  if (!valid_) return std::nullopt;
  const c10::NoGradGuard no_grad;
  // Evenly over the data, with the same noise every time.
  const std::int64_t count = std::min(options_.valid_examples, valid_->size());
  Validation result;
  result.active_heads = 0;
  for (std::int64_t from = 0; from < count; from += options_.valid_batch) {
    if (from / options_.valid_batch % group().size() != group().rank()) continue;
    std::vector<std::int64_t> indices;
    for (std::int64_t i = from; i < std::min(from + options_.valid_batch, count); ++i) {
      indices.push_back(i * valid_->size() / count);
    }
    const BatchLoss loss = loss_of(batch(*valid_, indices, options_.seed + 1, from, /*training=*/false), /*share=*/1);
    const double share = static_cast<double>(indices.size()) / static_cast<double>(count);
    result.loss += loss.loss * share;
    result.active_heads += loss.active_heads * share;
    const std::int64_t done = from + static_cast<std::int64_t>(indices.size());
    report_activity({"validating", static_cast<double>(done), static_cast<double>(count), "pictures"});
  }
  std::vector<double> sums = {result.loss, result.active_heads};
  group().sum(sums, "validation");
  result.loss = sums[0];
  result.active_heads = sums[1];
  return result;
}

void DitTask::save_model(const std::string& folder) const { model_.save(folder); }

void DitTask::illustrate(const std::string& folder, std::int64_t step, const io::NamedTensors* averaged) const {
  if (!options_.illustrate) return;
  const c10::NoGradGuard no_grad;
  options_.illustrate(averaged == nullptr ? model_ : models::Dit(model_.config(), *averaged), folder, step);
}

}  // namespace moh::train
