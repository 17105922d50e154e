#include "moh/text/text_stream.h"

#include <algorithm>
#include <utility>

#include "moh/base/error.h"

namespace moh::text {

TextStream::TextStream(std::vector<std::string> stops, bool drops_leading_space)
    : stops_(std::move(stops)), drops_leading_space_(drops_leading_space) {
  for (const std::string& stop : stops_) MOH_CHECK(!stop.empty(), "[generate] a stop string must not be empty");
}

std::string TextStream::push(std::string_view bytes) {
  if (stopped_ || bytes.empty()) return "";
  if (std::exchange(drops_leading_space_, false) && bytes.front() == ' ') bytes.remove_prefix(1);
  held_ += characters_.push(bytes);
  return release();
}

std::string TextStream::finish() {
  if (stopped_) return "";
  held_ += characters_.finish();
  std::string text = release();
  if (!stopped_) text += std::exchange(held_, "");
  return text;
}

std::string TextStream::release() {
  std::size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at == std::string::npos || at + stop.size() > end) continue;
    begin = at + stop.size() < end ? at : std::min(begin, at);
    end = at + stop.size();
  }
  if (begin != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, "").substr(0, begin);
  }
  std::size_t kept = 0;  // the longest end of the text that a stop string begins with
  for (const std::string& stop : stops_) {
    for (std::size_t size = std::min(stop.size() - 1, held_.size()); size > kept; --size) {
      if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) kept = size;
    }
  }
  std::string text = held_.substr(0, held_.size() - kept);
  held_.erase(0, text.size());
  return text;
}

std::vector<std::int64_t> prompt_ids(const Tokenizer& tokenizer, std::string_view text, std::int64_t bos,
                                     bool parse_special) {
  std::vector<std::int64_t> ids = tokenizer.encode(text, parse_special);
  // Without a tokenizer file only the model knows whether it has a BOS token.
  const bool adds_bos = tokenizer.kind() == "bytes" || tokenizer.adds_bos();
  if (adds_bos && bos >= 0 && (ids.empty() || ids.front() != bos)) ids.insert(ids.begin(), bos);
  return ids;
}

}  // namespace moh::text
