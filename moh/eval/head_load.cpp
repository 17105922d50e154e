#include "moh/eval/head_load.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "moh/base/activity.h"
#include "moh/base/error.h"

namespace moh::eval {

HeadLoad head_load(const models::Llama& model, const data::TokenStream& stream, std::int64_t sequence,
                   std::int64_t max_windows) {
  const c10::NoGradGuard no_grad;
  const auto& config = model.config();
  const std::int64_t length = std::min(sequence > 0 ? sequence : config.max_position_embeddings, stream.size() - 1);
  MOH_CHECK(length > 0, "[head_load] the data has ", stream.size(), " tokens; at least 2 are needed");
  const std::int64_t windows = std::min(max_windows, (stream.size() - 1) / length);
  HeadLoad load;
  load.share.assign(config.num_hidden_layers, std::vector<double>(config.num_attention_heads, config.moh ? 0.0 : 1.0));
  for (std::int64_t window = 0; window < windows; ++window) {
    const auto output =
        model.forward({.ids = stream.windows({window * length}, length).narrow(1, 0, length).to(model.device())});
    report_activity(
        {"measuring the head load", static_cast<double>(window + 1), static_cast<double>(windows), "windows"});
    load.tokens += length;
    for (std::size_t layer = 0; layer < output.routing.size(); ++layer) {
      const at::Tensor used = output.routing[layer].gates.ne(0).sum({0, 1}).to(at::kCPU, at::kDouble);  // [H]
      for (std::int64_t head = 0; head < used.size(0); ++head) load.share[layer][head] += used[head].item<double>();
    }
  }
  if (config.moh) {
    for (auto& layer : load.share) {
      for (double& share : layer) share /= static_cast<double>(load.tokens);
    }
  }
  return load;
}

}  // namespace moh::eval
