#include "moh/eval/batch.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "moh/base/error.h"

namespace moh::eval {
namespace {

constexpr std::int64_t kCacheBytes = std::int64_t{512} << 20;

}  // namespace

void stop_if(const std::function<bool()>& cancelled) {
  if (cancelled && cancelled()) throw Cancelled();
}

OutputHead::OutputHead(const models::Llama& model) : config_(model.config()) {
  const auto find = [&](const std::string& name) -> std::optional<at::Tensor> {
    for (const auto& [each, tensor] : model.parameters()) {
      if (each == name) return tensor;
    }
    return std::nullopt;
  };
  auto weight = find("lm_head.weight");
  if (!weight) weight = find("model.embed_tokens.weight");  // tied
  MOH_CHECK(weight, "[eval] the model has no tensor `lm_head.weight`");
  head_ = layers::Linear(*weight, find("lm_head.bias"));
}

at::Tensor OutputHead::operator()(const at::Tensor& hidden) const {
  at::Tensor logits = head_(hidden);
  if (config_.logits_divisor != 1) logits = logits / config_.logits_divisor;
  if (const double cap = config_.logits_soft_cap; cap > 0) logits = at::tanh(logits / cap) * cap;
  return logits;
}

RowBatch::RowBatch(const std::vector<Ids>& rows, const std::vector<std::int64_t>& past, std::int64_t cached,
                   at::Device device) {
  const auto count = static_cast<std::int64_t>(rows.size());
  std::int64_t length = 0;
  for (const Ids& row : rows) length = std::max(length, static_cast<std::int64_t>(row.size()));
  const auto options = at::TensorOptions(at::kLong);
  ids = at::zeros({count, length}, options);
  std::vector<std::int64_t> kept;
  for (std::int64_t row = 0; row < count; ++row) {
    const Ids& from = rows[static_cast<std::size_t>(row)];
    std::copy(from.begin(), from.end(), ids.mutable_data_ptr<std::int64_t>() + row * length);
    for (std::size_t i = 0; i < from.size(); ++i) kept.push_back(row * length + static_cast<std::int64_t>(i));
  }
  if (std::any_of(past.begin(), past.end(), [&](std::int64_t own) { return own != cached; })) {
    const at::Tensor own = at::tensor(past, options).unsqueeze(1);
    const at::Tensor keys = at::arange(cached + length, options).unsqueeze(0);
    mask = at::logical_or(keys.lt(own), keys.ge(cached)).to(at::kLong).to(device);
    positions = (own + at::arange(length, options)).to(device);
  }
  ids = ids.to(device);
  real = at::tensor(kept, options).to(device);
}

bool has_windows(const models::Llama& model) {
  for (std::int64_t layer = 0; layer < model.config().num_hidden_layers; ++layer) {
    if (model.config().window(layer) > 0) return true;
  }
  return false;
}

std::int64_t max_cache_rows(const models::Llama& model, std::int64_t length) {
  const auto& config = model.config();
  const auto element = static_cast<std::int64_t>(model.parameters().front().second.element_size());
  const std::int64_t token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element;
  return std::max<std::int64_t>(1, kCacheBytes / std::max<std::int64_t>(1, token * length));
}

}  // namespace moh::eval
