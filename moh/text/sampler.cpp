#include "moh/text/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moh/base/error.h"

namespace moh::text {

Sampler::Sampler(const SamplingOptions& options, std::span<const std::int64_t> prompt)
    : options_(options), random_(options.seed) {
  MOH_CHECK(options.temperature >= 0 && std::isfinite(options.temperature),
            "[generate] temperature must be at least 0, got ", options.temperature);
  MOH_CHECK(options.top_k >= 0, "[generate] top_k must be at least 0, got ", options.top_k);
  MOH_CHECK(options.top_p > 0 && options.top_p <= 1, "[generate] top_p must be in (0, 1], got ", options.top_p);
  MOH_CHECK(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty),
            "[generate] repetition_penalty must be above 0, got ", options.repetition_penalty);
  MOH_CHECK(std::isfinite(options.frequency_penalty), "[generate] frequency_penalty must be a number, got ",
            options.frequency_penalty);
  MOH_CHECK(std::isfinite(options.presence_penalty), "[generate] presence_penalty must be a number, got ",
            options.presence_penalty);
  for (const auto& [id, bias] : options.logit_bias) {
    MOH_CHECK(!std::isnan(bias) && bias != std::numeric_limits<double>::infinity(), "[generate] logit_bias of token ",
              id, " must be a number or minus infinity, got ", bias);
  }
  if (options.repetition_penalty != 1) {
    for (const std::int64_t id : prompt) seen_[id];
  }
}

std::int64_t Sampler::operator()(std::span<const float> logits) {
  logits_.assign(logits.begin(), logits.end());
  return choose();
}
std::int64_t Sampler::operator()(std::span<const double> logits) {
  logits_.assign(logits.begin(), logits.end());
  return choose();
}

void Sampler::adjust() {
  const auto size = static_cast<std::int64_t>(logits_.size());
  for (const auto& [id, seen] : seen_) {
    if (id < 0 || id >= size) continue;
    double& logit = logits_[static_cast<std::size_t>(id)];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    if (seen.in_text == 0) continue;
    logit -= options_.frequency_penalty * static_cast<double>(seen.in_text) + options_.presence_penalty;
  }
  for (const auto& [id, bias] : options_.logit_bias) {
    MOH_CHECK(id >= 0 && id < size, "[generate] logit_bias of token ", id, ", expected an id below ", size);
    logits_[static_cast<std::size_t>(id)] += bias;
  }
}

// Puts the `count` most probable of order_ at its front, in order; the first `sorted` are there already.
std::size_t Sampler::sort_front(std::size_t sorted, std::size_t count) {
  const auto before = [&](std::uint32_t a, std::uint32_t b) {
    return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
  };
  count = std::min(count, order_.size());
  const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(sorted);
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(count);
  if (end != order_.end()) std::nth_element(begin, end, order_.end(), before);
  std::sort(begin, end, before);
  return count;
}

std::int64_t Sampler::choose() {
  MOH_CHECK(!logits_.empty(), "[generate] there are no logits");
  adjust();
  for (const double logit : logits_) {
    MOH_CHECK(!std::isnan(logit), "[generate] the model's logits are NaN; are there NaNs in the weights?");
  }
  const auto best = std::max_element(logits_.begin(), logits_.end());
  MOH_CHECK(std::isfinite(*best), "[generate] ",
            *best > 0 ? "a logit is infinite; are the weights damaged?" : "no token is allowed");
  const auto chosen = [&](std::int64_t id) {
    if (options_.frequency_penalty != 0 || options_.presence_penalty != 0 || options_.repetition_penalty != 1)
      ++seen_[id].in_text;
    return id;
  };
  if (options_.temperature == 0) return chosen(best - logits_.begin());

  const std::size_t size = logits_.size();
  const auto weight = [&](std::size_t id) { return std::exp((logits_[id] - *best) / options_.temperature); };
  const auto uniform = [&] { return static_cast<double>(random_() >> 11) * 0x1.0p-53; };
  // The one of `count` ids whose share of `total` the next random number falls into.
  const auto draw = [&](std::size_t count, double total, const auto& id_of) {
    double left = uniform() * total;
    for (std::size_t i = 0; i < count; ++i) {
      left -= weights_[i];
      if (left < 0) return static_cast<std::int64_t>(id_of(i));
    }
    return static_cast<std::int64_t>(id_of(count - 1));
  };
  const auto top_k = static_cast<std::size_t>(options_.top_k);
  const bool has_top_k = top_k > 0 && top_k < size;
  if (!has_top_k && options_.top_p == 1) {
    weights_.resize(size);
    for (std::size_t id = 0; id < size; ++id) weights_[id] = weight(id);
    const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
    return chosen(draw(size, total, [](std::size_t i) { return i; }));
  }

  order_.resize(size);
  std::iota(order_.begin(), order_.end(), 0U);
  weights_.clear();
  double total = 0;
  std::size_t most = size, sorted = 0;  // ids that may be chosen; of order_ in order
  if (has_top_k) {
    most = sorted = sort_front(0, top_k);
    for (std::size_t i = 0; i < most; ++i) total += weight(order_[i]);
  } else {
    for (std::size_t id = 0; id < size; ++id) total += weight(id);
  }
  // Most texts need a few ids: more are sorted when they are asked for.
  double reached = 0;
  while (weights_.size() < most && reached < options_.top_p * total) {
    if (weights_.size() == sorted) sorted = sort_front(sorted, std::max<std::size_t>(64, 8 * sorted));
    weights_.push_back(weight(order_[weights_.size()]));
    reached += weights_.back();
  }
  return chosen(draw(weights_.size(), options_.top_p < 1 ? reached : total, [&](std::size_t i) { return order_[i]; }));
}

}  // namespace moh::text
