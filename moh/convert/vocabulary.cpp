#include "moh/convert/vocabulary.h"

#include <ATen/ATen.h>

#include "moh/base/error.h"

namespace moh::convert {
namespace {

using at::Tensor;

// The old pieces of a new piece's text.
std::vector<std::int64_t> split(const text::Tokenizer& old, const std::string& text) {
  if (text.empty()) return {};
  // Some tokenizers put a space before every text; the piece brings its own, or must not get one.
  const bool spaced = text.front() == ' ' && text.size() > 1;
  auto ids = old.encode(old.strips_leading_space() && spaced ? text.substr(1) : text);
  if (old.strips_leading_space() && text.front() != ' ' && ids.size() > 1 && old.piece_bytes(ids.front()) == " ") {
    ids.erase(ids.begin());
  }
  return ids;
}

// [size, C]
Tensor grown_rows(const Tensor& rows, const std::vector<std::vector<std::int64_t>>& parts, std::int64_t size) {
  const std::int64_t before = rows.size(0);
  const Tensor wide = rows.detach().to(at::kFloat);
  Tensor result = wide.mean(0, /*keepdim=*/true).expand({size, rows.size(1)}).clone();
  result.narrow(0, 0, before).copy_(wide);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].empty()) continue;
    const Tensor pieces = at::tensor(parts[i], at::TensorOptions(at::kLong));
    result[before + static_cast<std::int64_t>(i)].copy_(wide.index_select(0, pieces).mean(0));
  }
  return result.to(rows.scalar_type());
}

}  // namespace

models::Llama grow_vocabulary(const models::Llama& model, const text::Tokenizer& old, const text::Tokenizer& grown,
                              std::int64_t size) {
  models::LlamaConfig config = model.config();
  const std::int64_t before = config.vocab_size, known = std::min(old.vocab_size(), before);
  MOH_CHECK(size >= before && size >= grown.vocab_size(), "[vocabulary] ", size, " rows are too few: the model has ",
            before, ", the new tokenizer ", grown.vocab_size());
  MOH_CHECK(grown.vocab_size() >= known, "[vocabulary] the new tokenizer has ", grown.vocab_size(),
            " pieces, the old one ", known, "; it must extend it");
  for (std::int64_t id = 0; id < known; ++id) {
    MOH_CHECK(old.piece_bytes(id) == grown.piece_bytes(id), "[vocabulary] piece ", id, " is `", old.piece_bytes(id),
              "` in the model's tokenizer and `", grown.piece_bytes(id), "` in the new one, which must extend it");
  }
  // Rows that padded the old vocabulary were never trained for what they mean now.
  std::vector<std::vector<std::int64_t>> parts;
  for (std::int64_t id = known; id < grown.vocab_size(); ++id) {
    auto ids = split(old, grown.piece_bytes(id));
    std::erase_if(ids, [&](std::int64_t each) { return each < 0 || each >= known; });
    parts.push_back(std::move(ids));
  }
  io::NamedTensors tensors;
  for (const auto& [name, tensor] : model.parameters()) {
    const bool by_piece = name == "model.embed_tokens.weight" || name == "lm_head.weight" || name == "lm_head.bias";
    if (!by_piece) {
      tensors.emplace_back(name, tensor);
    } else if (tensor.dim() == 2) {
      tensors.emplace_back(name, grown_rows(tensor.narrow(0, 0, known), parts, size));
    } else {
      tensors.emplace_back(name, grown_rows(tensor.unsqueeze(1).narrow(0, 0, known), parts, size).squeeze(1));
    }
  }
  config.vocab_size = size;
  config.bos_token_id = grown.bos_id();
  if (grown.eos_id() >= 0) config.eos_token_id = {grown.eos_id()};
  return models::Llama(config, std::move(tensors));
}

}  // namespace moh::convert
