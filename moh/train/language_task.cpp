#include "moh/train/language_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <random>

#include "moh/base/error.h"
#include "moh/io/companions.h"
#include "moh/models/llama_routing.h"
#include "moh/ops/autocast.h"

namespace moh::train {

using at::Tensor;

LanguageTask::LanguageTask(models::Llama model, data::TokenStream train, std::optional<data::TokenStream> valid,
                           std::optional<models::Llama> teacher, LanguageTaskOptions options)
    : model_(std::move(model)),
      train_(std::move(train)),
      valid_(std::move(valid)),
      teacher_(std::move(teacher)),
      options_(std::move(options)),
      sampler_(train_.size(), options_.sequence, options_.seed) {
  const auto& config = model_.config();
  MOH_CHECK(options_.sequence <= config.max_position_embeddings, "[train] a sequence of ", options_.sequence,
            " does not fit into the model's context of ", config.max_position_embeddings);
  MOH_CHECK(options_.distill_weight >= 0 && options_.distill_weight <= 1,
            "[train] distill weight must be in 0..1, got ", options_.distill_weight);
  MOH_CHECK(!teacher_ || teacher_->config().vocab_size == config.vocab_size, "[train] the teacher's vocabulary of ",
            teacher_ ? teacher_->config().vocab_size : 0, " is not the model's of ", config.vocab_size);
  MOH_CHECK(options_.distill_hidden >= 0, "[train] distill hidden must be at least 0, got ", options_.distill_hidden);
  if (teacher_ && options_.distill_hidden > 0) {
    const auto& theirs = teacher_->config();
    MOH_CHECK(theirs.hidden_size == config.hidden_size && theirs.num_hidden_layers == config.num_hidden_layers,
              "[train] distilling hidden states needs a teacher of the same layers and hidden size: it has ",
              theirs.num_hidden_layers, " of ", theirs.hidden_size, ", the model ", config.num_hidden_layers, " of ",
              config.hidden_size);
  }
  if (options_.random_share_min != 0) {
    MOH_CHECK(config.moh.has_value(), "[train] a random share of the heads needs a MoH model, this one is dense");
    MOH_CHECK(options_.random_share_min > 0 && options_.random_share_min <= options_.random_share_max &&
                  options_.random_share_max <= 1,
              "[train] the random share must have 0 < min <= max <= 1, got ", options_.random_share_min, " and ",
              options_.random_share_max);
  }
  model_.set_requires_grad(true);
  if (teacher_) teacher_->set_requires_grad(false);
}

namespace {

// Squared distance of the hidden states after every layer, relative to the teacher's squared size, mean over layers.
Tensor hidden_distance(const models::LlamaOutput& output, const models::LlamaOutput& target) {
  const auto distance = [](const Tensor& ours, const Tensor& theirs) {
    return (ours - theirs).square().mean() / theirs.square().mean();
  };
  Tensor sum = distance(output.last_hidden, target.last_hidden);
  for (std::size_t i = 1; i < output.hidden.size(); ++i) sum = sum + distance(output.hidden[i], target.hidden[i]);
  return sum / static_cast<double>(output.hidden.size());
}

}  // namespace

models::LlamaOutput LanguageTask::forward(std::int64_t position, const models::LlamaInput& input) {
  if (options_.random_share_min == 0) return model_.forward(input);
  // Drawn from the position alone, so that a resumed run draws the same.
  std::mt19937_64 random(options_.seed ^ (static_cast<std::uint64_t>(position) * 0x9E3779B97F4A7C15u));
  const double uniform = static_cast<double>(random() >> 11) * 0x1.0p-53;
  const models::MohConfig own = *model_.config().moh;
  models::set_activated_share(
      model_.mutable_config(),
      options_.random_share_min + uniform * (options_.random_share_max - options_.random_share_min));
  auto output = model_.forward(input);
  model_.mutable_config().moh = own;
  return output;
}

BatchLoss LanguageTask::loss(std::int64_t position, std::int64_t count) {
  const Tensor ids = train_.windows(sampler_.starts(position, count), options_.sequence).to(model_.device());
  const Tensor inputs = ids.narrow(1, 0, options_.sequence);
  const Tensor targets = ids.narrow(1, 1, options_.sequence).reshape({-1});
  const ops::Autocast autocast(options_.autocast, model_.device().type());
  const bool with_hidden = teacher_ && options_.distill_hidden > 0;
  const auto output = forward(position, {.ids = inputs, .keep_hidden = with_hidden, .balance_loss = true});
  const Tensor log_probabilities =
      at::log_softmax(output.logits.reshape({targets.size(0), -1}), -1, /*dtype=*/at::kFloat);
  const Tensor cross_entropy = at::nll_loss(log_probabilities, targets);

  BatchLoss result;
  result.items = targets.size(0);
  result.loss = cross_entropy.item<double>();
  result.active_heads = eval::active_share(output);
  result.objective = cross_entropy;
  if (teacher_) {
    Tensor teacher;
    models::LlamaOutput target;
    {
      const c10::NoGradGuard no_grad;
      target = teacher_->forward({.ids = inputs, .keep_hidden = with_hidden});
      teacher = at::log_softmax(target.logits.reshape(log_probabilities.sizes()), -1, /*dtype=*/at::kFloat);
    }
    const Tensor divergence =
        at::kl_div(log_probabilities, teacher, at::Reduction::Sum, /*log_target=*/true) / targets.size(0);
    result.distill_loss = divergence.item<double>();
    result.objective = divergence * options_.distill_weight + cross_entropy * (1 - options_.distill_weight);
    if (with_hidden) result.objective = result.objective + hidden_distance(output, target) * options_.distill_hidden;
  }
  if (output.load_balance_loss.defined()) {
    result.load_balance_loss = output.load_balance_loss.item<double>();
    result.objective = result.objective + output.load_balance_loss * model_.config().moh->beta;
  }
  return result;
}

std::optional<Validation> LanguageTask::validate() {
  if (!valid_) return std::nullopt;
  const auto result = eval::perplexity(
      model_, *valid_,
      {.sequence = options_.sequence, .max_windows = options_.valid_windows, .autocast = options_.autocast});
  return Validation{result.nll, result.perplexity, result.active_heads};
}

void LanguageTask::save_model(const std::string& folder) const {
  model_.save(folder);
  if (!options_.tokenizer.empty()) io::copy_companions(options_.tokenizer, folder);
  io::copy_model_files(options_.companions, folder);
}

}  // namespace moh::train
