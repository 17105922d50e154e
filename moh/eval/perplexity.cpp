#include "moh/eval/perplexity.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "moh/base/activity.h"
#include "moh/base/error.h"
#include "moh/ops/autocast.h"

namespace moh::eval {

double active_share(const models::LlamaOutput& output) {
  std::vector<at::Tensor> gates;
  for (const auto& routing : output.routing) gates.push_back(routing.gates);
  return ops::active_share(gates);
}

PerplexityResult perplexity(const models::Llama& model, const data::TokenStream& stream,
                            const PerplexityOptions& options, const std::function<void(double)>& progress) {
  const std::int64_t context = model.config().max_position_embeddings;
  const std::int64_t sequence = options.sequence > 0 ? options.sequence : context;
  MOH_CHECK(sequence <= context, "[perplexity] a sequence of ", sequence, " does not fit into the model's context of ",
            context);
  MOH_CHECK(stream.size() >= 2, "[perplexity] the data has ", stream.size(), " tokens; at least 2 are needed");
  MOH_CHECK(options.batch > 0, "[perplexity] batch must be positive, got ", options.batch);
  const c10::NoGradGuard no_grad;
  const ops::Autocast autocast(options.autocast, model.device().type());
  const at::Device device = model.device();

  std::int64_t full = (stream.size() - 1) / sequence;
  std::int64_t rest = (stream.size() - 1) % sequence;
  if (options.max_windows > 0 && full >= options.max_windows) {
    full = options.max_windows;
    rest = 0;
  }
  PerplexityResult result;
  double loss = 0, active = 0;
  const std::int64_t all = full * sequence + rest;
  const auto run = [&](const std::vector<std::int64_t>& starts, std::int64_t length) {
    const auto tokens = static_cast<double>(starts.size()) * static_cast<double>(length);
    const PartListener parts([&](double part) {
      const double done = static_cast<double>(result.tokens) + 0.9 * part * tokens;  // the rest: logits and loss
      if (progress) progress(done / static_cast<double>(all));
    });
    const at::Tensor ids = stream.windows(starts, length).to(device);
    const auto output = model.forward({.ids = ids.narrow(1, 0, length)});
    const at::Tensor targets = ids.narrow(1, 1, length).reshape({-1});
    const at::Tensor logits = output.logits.reshape({targets.size(0), -1}).to(at::kFloat);
    const at::Tensor losses = at::cross_entropy_loss(logits, targets, {}, at::Reduction::None);
    loss += losses.sum(at::kDouble).item<double>();
    active += active_share(output) * static_cast<double>(targets.size(0));
    result.tokens += targets.size(0);
  };
  std::int64_t number = 0;
  const auto is_ours = [&] { return number++ % options.parts == options.part; };
  for (std::int64_t window = 0; window < full; window += options.batch) {
    if (!is_ours()) continue;
    std::vector<std::int64_t> starts;
    for (std::int64_t i = window; i < std::min(full, window + options.batch); ++i) starts.push_back(i * sequence);
    run(starts, sequence);
    if (progress) progress(static_cast<double>(result.tokens) / static_cast<double>(all));
  }
  if (rest > 0 && is_ours()) run({full * sequence}, rest);
  if (progress) progress(1.0);
  if (options.parts > 1) {
    std::vector<double> sums = {loss, active, static_cast<double>(result.tokens)};
    options.sum(sums);
    loss = sums[0];
    active = sums[1];
    result.tokens = static_cast<std::int64_t>(sums[2]);
  }
  result.nll = loss / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.nll);
  result.active_heads = active / static_cast<double>(result.tokens);
  if (!std::isfinite(result.nll)) {
    io::check_finite(model.parameters(), "perplexity");
    fail("[perplexity] the loss is not finite, although the weights are; does the model overflow in ",
         model.parameters().front().second.scalar_type(), "? Try --dtype fp32");
  }
  return result;
}

}  // namespace moh::eval
