#include "moh/train/language_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/base/error.h"
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
  model_.set_requires_grad(true);
  if (teacher_) teacher_->set_requires_grad(false);
}

std::vector<bool> LanguageTask::decays() const {
  std::vector<bool> decays;
  for (const auto& spec : models::llama_parameters(model_.config())) decays.push_back(spec.decays);
  return decays;
}

BatchLoss LanguageTask::loss(std::int64_t position, std::int64_t count) {
  const Tensor ids = train_.windows(sampler_.starts(position, count), options_.sequence).to(model_.device());
  const Tensor inputs = ids.narrow(1, 0, options_.sequence);
  const Tensor targets = ids.narrow(1, 1, options_.sequence).reshape({-1});
  const ops::Autocast autocast(options_.autocast, model_.device().type());
  const auto output = model_.forward({.ids = inputs});
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
    {
      const c10::NoGradGuard no_grad;
      teacher = at::log_softmax(teacher_->forward({.ids = inputs}).logits.reshape(log_probabilities.sizes()), -1,
                                /*dtype=*/at::kFloat);
    }
    const Tensor divergence =
        at::kl_div(log_probabilities, teacher, at::Reduction::Sum, /*log_target=*/true) / targets.size(0);
    result.distill_loss = divergence.item<double>();
    result.objective = divergence * options_.distill_weight + cross_entropy * (1 - options_.distill_weight);
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
  if (!options_.companions.empty()) io::copy_companions(options_.companions, folder);
}

}  // namespace moh::train
