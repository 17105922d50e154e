#include "moh/convert/calibration.h"

#include <algorithm>

#include "moh/base/error.h"

namespace moh::convert {
namespace {

std::int64_t shortest(const Calibration& calibration) {
  MOH_CHECK(!calibration.texts.empty(), "[convert] calibration needs a text");
  std::int64_t size = calibration.texts[0]->size();
  for (const auto* text : calibration.texts) size = std::min(size, text->size());
  return size;
}

// Windows that a text has beside each other.
std::int64_t capacity(const data::TokenStream& text, std::int64_t length) { return (text.size() - 1) / length; }

}  // namespace

std::int64_t window_length(const models::LlamaConfig& config, const Calibration& calibration) {
  const std::int64_t context = config.max_position_embeddings;
  MOH_CHECK(calibration.sequence <= context, "[convert] a calibration sequence of ", calibration.sequence,
            " does not fit into the model's context of ", context);
  const std::int64_t wanted = calibration.sequence > 0 ? calibration.sequence : std::min<std::int64_t>(context, 512);
  const std::int64_t length = std::min(wanted, shortest(calibration) - 1);
  MOH_CHECK(length > 0 && calibration.windows > 0, "[convert] calibration needs at least 2 tokens and one window, got ",
            shortest(calibration), " tokens and ", calibration.windows, " windows");
  return length;
}

std::int64_t window_count(const Calibration& calibration, std::int64_t length) {
  std::int64_t least = calibration.windows;  // texts take turns until one of them ends
  const auto texts = static_cast<std::int64_t>(calibration.texts.size());
  for (std::int64_t i = 0; i < texts; ++i) {
    least = std::min(least, capacity(*calibration.texts[i], length) * texts + i);
  }
  return least;
}

at::Tensor window_ids(const Calibration& calibration, std::int64_t length, std::int64_t window) {
  const auto texts = static_cast<std::int64_t>(calibration.texts.size());
  const data::TokenStream& text = *calibration.texts[window % texts];
  const std::int64_t index = window / texts;
  std::int64_t start = index * length;
  if (calibration.spread) {
    const std::int64_t count =
        (window_count(calibration, length) - window % texts + texts - 1) / texts;  // of this text
    if (count > 1) start = (text.size() - 1 - length) / (count - 1) * index;
  }
  return text.windows({start}, length);
}

}  // namespace moh::convert
