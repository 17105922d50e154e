#include "moh/train/language_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <random>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/io/companions.h"
#include "moh/layers/recompute.h"
#include "moh/models/llama_routing.h"
#include "moh/ops/autocast.h"
#include "moh/train/shared_balance.h"

namespace moh::train {

using at::Tensor;

LanguageTask::LanguageTask(models::Llama model, data::TokenMix train, std::optional<data::TokenStream> valid,
                           std::optional<models::Llama> teacher, LanguageTaskOptions options)
    : model_(std::move(model)),
      train_(std::make_unique<const data::TokenMix>(std::move(train))),
      valid_(std::move(valid)),
      teacher_(std::move(teacher)),
      options_(std::move(options)),
      sampler_(*train_, options_.sequence, options_.seed) {
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
  MOH_CHECK(!options_.documents || train_->has_documents(),
            "[train] attention cannot stop at documents: the data do not say "
            "where they begin; `moh data tokenize` makes such data");
  MOH_CHECK(options_.loss_rows >= 0, "[train] loss rows must be at least 0, got ", options_.loss_rows);
}

namespace {

// Squared distance of the hidden states after every layer, relative to the teacher's squared size in the whole batch,
// of which this process has `share`; mean over layers.
Tensor hidden_distance(const models::LlamaOutput& output, const models::LlamaOutput& target, double share,
                       const distributed::Group& group) {
  std::vector<Tensor> ours = {output.last_hidden}, theirs = {target.last_hidden};
  for (std::size_t i = 1; i < output.hidden.size(); ++i) {
    ours.push_back(output.hidden[i]);
    theirs.push_back(target.hidden[i]);
  }
  std::vector<Tensor> sizes;
  for (const Tensor& hidden : theirs) sizes.push_back(hidden.square().mean());
  if (!group.alone()) {
    Tensor whole = at::stack(sizes) * share;
    group.sum(whole, "the teacher's hidden states");
    sizes = whole.unbind();
  }
  Tensor sum;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const Tensor distance = (ours[i] - theirs[i]).square().mean() / sizes[i];
    sum = sum.defined() ? sum + distance : distance;
  }
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

LanguageTask::Losses LanguageTask::losses_of(const Tensor& hidden, const Tensor& teacher_hidden,
                                             const Tensor& targets) const {
  const std::int64_t rows = targets.size(0);
  // Of hidden states [1, n, C] or [B, T, C] and, with a teacher, its own: the sum of the divergence is always one.
  const auto of_rows = [this](const std::vector<Tensor>& inputs, const Tensor& wanted,
                              at::Reduction::Reduction reduction) -> std::vector<Tensor> {
    const auto log_probabilities = [&](const models::Llama& model, const Tensor& states) {
      return at::log_softmax(model.logits(states).reshape({wanted.size(0), -1}), -1, /*dtype=*/at::kFloat);
    };
    const Tensor ours = log_probabilities(model_, inputs[0]);
    std::vector<Tensor> results = {at::nll_loss(ours, wanted, {}, reduction)};
    if (inputs.size() > 1) {
      Tensor theirs;
      {
        const c10::NoGradGuard no_grad;
        theirs = log_probabilities(*teacher_, inputs[1]);
      }
      results.push_back(at::kl_div(ours, theirs, at::Reduction::Sum, /*log_target=*/true));
    }
    return results;
  };
  if (options_.loss_rows == 0 || options_.loss_rows >= rows) {
    std::vector<Tensor> whole = {hidden};
    if (teacher_hidden.defined()) whole.push_back(teacher_hidden);
    const auto all = of_rows(whole, targets, at::Reduction::Mean);
    return {all[0], all.size() > 1 ? all[1] / rows : Tensor()};
  }
  std::vector<Tensor> states = {hidden.reshape({1, rows, -1})};
  if (teacher_hidden.defined()) states.push_back(teacher_hidden.reshape({1, rows, -1}));
  std::vector<Tensor> totals;
  for (std::int64_t from = 0; from < rows; from += options_.loss_rows) {
    const std::int64_t count = std::min(options_.loss_rows, rows - from);
    std::vector<Tensor> part;
    for (const Tensor& all : states) part.push_back(all.narrow(1, from, count));
    const Tensor wanted = targets.narrow(0, from, count);
    const auto results = layers::recomputed(
        [of_rows, wanted](const std::vector<Tensor>& inputs) { return of_rows(inputs, wanted, at::Reduction::Sum); },
        part, model_.head_parameters(), states.size());
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (totals.size() <= i) {
        totals.push_back(results[i]);
      } else {
        totals[i] = totals[i] + results[i];
      }
    }
  }
  return {totals[0] / rows, totals.size() > 1 ? totals[1] / rows : Tensor()};
}

BatchLoss LanguageTask::loss(std::int64_t position, std::int64_t count) {
  const auto [first, end] = group().share(count);
  MOH_CHECK(end > first, "[train] ", count, " sequences at a time are too few for ", group().size(), " processes");
  const auto windows = sampler_.windows(position + first, end - first, options_.documents);
  const Tensor ids = windows.ids.to(model_.device());
  const Tensor inputs = ids.narrow(1, 0, options_.sequence);
  const Tensor targets = ids.narrow(1, 1, options_.sequence).reshape({-1});
  Tensor documents;
  if (options_.documents) documents = windows.documents.narrow(1, 0, options_.sequence).to(model_.device());
  const ops::Autocast autocast(options_.autocast, model_.device().type());
  const bool with_hidden = teacher_ && options_.distill_hidden > 0;
  const ops::BalanceTerms terms;
  auto output = forward(position, {.ids = inputs,
                                   .keep_hidden = with_hidden,
                                   .documents = documents,
                                   .balance_loss = true,
                                   .recompute = options_.recompute,
                                   .no_logits = true});
  models::LlamaOutput target;
  if (teacher_) {
    const c10::NoGradGuard no_grad;
    target = teacher_->forward({.ids = inputs, .keep_hidden = with_hidden, .documents = documents, .no_logits = true});
  }
  const Losses losses = losses_of(output.last_hidden, target.last_hidden, targets);

  BatchLoss result;
  result.items = targets.size(0);
  result.share = static_cast<double>(end - first) / static_cast<double>(count);
  result.loss = losses.cross_entropy.item<double>();
  result.active_heads = eval::active_share(output);
  result.objective = losses.cross_entropy;
  if (teacher_) {
    result.distill_loss = losses.divergence.item<double>();
    result.objective =
        losses.divergence * options_.distill_weight + losses.cross_entropy * (1 - options_.distill_weight);
    if (with_hidden)
      result.objective =
          result.objective + hidden_distance(output, target, result.share, group()) * options_.distill_hidden;
  }
  if (!group().alone()) output.load_balance_loss = shared_balance_loss(terms, result.share, group());
  if (output.load_balance_loss.defined()) {
    result.load_balance_loss = output.load_balance_loss.item<double>();
    result.objective = result.objective + output.load_balance_loss * model_.config().moh->beta;
  }
  return result;
}

std::optional<Validation> LanguageTask::validate() {
  const auto measure = [&](const data::TokenStream& stream) {
    return eval::perplexity(model_, stream,
                            {.sequence = options_.sequence,
                             .max_windows = options_.valid_windows,
                             .autocast = options_.autocast,
                             .part = group().rank(),
                             .parts = group().size(),
                             .sum = [&](std::vector<double>& values) { group().sum(values, "validation"); }},
                            [](double done) { report_activity({"validating", done, 1}); });
  };
  std::optional<Validation> validation;
  if (valid_) {
    const auto result = measure(*valid_);
    validation = Validation{result.nll, result.perplexity, result.active_heads};
  }
  // Without data of the whole, its loss is that of the sources by their weights.
  double loss = 0, active = 0, weights = 0;
  std::vector<std::pair<std::string, double>> scores;
  for (const data::TokenSource& source : train_->sources()) {
    if (!source.valid) continue;
    const auto result = measure(*source.valid);
    scores.emplace_back("loss_" + source.name, result.nll);
    loss += source.weight * result.nll;
    active += source.weight * result.active_heads;
    weights += source.weight;
  }
  if (scores.empty()) return validation;
  if (!validation) validation = Validation{loss / weights, std::exp(loss / weights), active / weights};
  validation->scores = std::move(scores);
  return validation;
}

void LanguageTask::save_model(const std::string& folder) const {
  model_.save(folder);
  if (!options_.tokenizer.empty()) io::copy_companions(options_.tokenizer, folder);
  io::copy_model_files(options_.companions, folder);
}

}  // namespace moh::train
