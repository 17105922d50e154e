#include "moh/eval/greedy.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

#include "moh/base/error.h"
#include "moh/eval/perplexity.h"
#include "moh/text/utf8.h"

namespace moh::eval {
namespace {

// Prompts side by side, their ends in line: keys and values of row r are the first lengths[r] of sources[r].
models::KvCache merge(const models::Llama& model, const std::vector<models::KvCache>& sources, std::int64_t capacity) {
  std::int64_t longest = 0;
  for (const auto& source : sources) longest = std::max(longest, source.length);
  models::KvCache cache = model.make_cache(static_cast<std::int64_t>(sources.size()), longest + capacity);
  cache.length = longest;
  for (std::size_t row = 0; row < sources.size(); ++row) {
    const std::int64_t length = sources[row].length, at = static_cast<std::int64_t>(row);
    const auto copy = [&](const at::Tensor& to, const at::Tensor& from) {
      to.select(0, at).narrow(1, 0, longest - length).zero_();  // masked, but no NaN must lie there
      to.select(0, at).narrow(1, longest - length, length).copy_(from.select(0, 0).narrow(1, 0, length));
    };
    for (std::size_t layer = 0; layer < cache.key.size(); ++layer) {
      copy(cache.key[layer], sources[row].key[layer]);
      copy(cache.value[layer], sources[row].value[layer]);
    }
  }
  return cache;
}

// The rows of a cache that are still wanted.
void keep_rows(models::KvCache& cache, const at::Tensor& rows) {
  for (std::size_t layer = 0; layer < cache.key.size(); ++layer) {
    cache.key[layer] = cache.key[layer].index_select(0, rows);
    cache.value[layer] = cache.value[layer].index_select(0, rows);
  }
}

}  // namespace

struct GreedyGenerator::Row {
  std::size_t prompt;
  Ids ids;  // the prompt's, then the text's
  std::int64_t prompt_length;
};

GreedyGenerator::GreedyGenerator(const models::Llama& model, const text::Tokenizer& tokenizer, GreedyOptions options)
    : model_(model), tokenizer_(tokenizer), options_(std::move(options)) {
  MOH_CHECK(options_.max_tokens < model.config().max_position_embeddings, "[eval] the model's context of ",
            model.config().max_position_embeddings, " tokens leaves no room for a prompt and an answer of up to ",
            options_.max_tokens);
}

void GreedyGenerator::generate(const std::vector<Ids>& prompts,
                               const std::function<void(std::size_t, const std::string&)>& done) {
  const c10::NoGradGuard no_grad;
  const std::int64_t room = model_.config().max_position_embeddings - options_.max_tokens;
  std::vector<Row> rows;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    MOH_CHECK(!prompts[i].empty(), "[eval] a prompt has no tokens, and the model has no BOS token to start from");
    Ids ids = prompts[i];
    if (static_cast<std::int64_t>(ids.size()) > room) ids.erase(ids.begin(), ids.end() - room);
    const auto length = static_cast<std::int64_t>(ids.size());
    rows.push_back({i, std::move(ids), length});
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return a.prompt_length > b.prompt_length; });
  for (std::size_t begin = 0; begin < rows.size();) {
    const std::int64_t most =
        std::min(options_.rows, max_cache_rows(model_, rows[begin].prompt_length + options_.max_tokens));
    const std::size_t end = std::min(rows.size(), begin + static_cast<std::size_t>(most));
    run({rows.begin() + static_cast<std::ptrdiff_t>(begin), rows.begin() + static_cast<std::ptrdiff_t>(end)}, done);
    begin = end;
  }
}

void GreedyGenerator::count(const models::LlamaOutput& output, double tokens) {
  active_ += tokens * active_share(output);
  tokens_ += tokens;
}

std::string GreedyGenerator::text_of(const Ids& ids) const {
  Ids shown;
  for (const std::int64_t id : ids) {
    if (id < tokenizer_.vocab_size() && !tokenizer_.piece_bytes(id).empty()) shown.push_back(id);
  }
  return shown.empty() ? std::string() : text::repair_utf8(tokenizer_.decode(shown));
}

void GreedyGenerator::run(std::vector<Row> rows, const std::function<void(std::size_t, const std::string&)>& done) {
  const auto options = at::TensorOptions(at::kLong);
  const auto to_ids = [&](const Ids& ids) { return at::tensor(ids, options).to(model_.device()); };
  std::vector<models::KvCache> caches;
  std::vector<at::Tensor> logits;
  std::int64_t longest = 0;
  for (const Row& row : rows) {  // one by one, without padding
    models::KvCache cache = model_.make_cache(1, row.prompt_length);
    at::Tensor last;
    for (std::int64_t at = 0; at < row.prompt_length; at += options_.batch.tokens) {
      const std::int64_t end = std::min(row.prompt_length, at + options_.batch.tokens);
      const Ids part(row.ids.begin() + at, row.ids.begin() + end);
      stop_if(options_.batch.cancelled);
      const auto output = model_.forward({.ids = to_ids(part).unsqueeze(0), .cache = &cache, .last_only = true});
      count(output, static_cast<double>(part.size()));
      last = output.logits;
    }
    logits.push_back(last.flatten(0, 1));
    longest = std::max(longest, row.prompt_length);
    caches.push_back(std::move(cache));
  }
  models::KvCache cache = merge(model_, caches, options_.max_tokens);
  caches.clear();
  at::Tensor next = at::cat(logits).argmax(-1).cpu();
  for (;;) {
    std::vector<Row> left;
    std::vector<std::int64_t> kept;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      Row& row = rows[i];
      const std::int64_t id = next.const_data_ptr<std::int64_t>()[i];
      bool ended = std::find(options_.end_ids.begin(), options_.end_ids.end(), id) != options_.end_ids.end();
      if (!ended) row.ids.push_back(id);
      const Ids own(row.ids.begin() + row.prompt_length, row.ids.end());
      std::string text = text_of(own);
      for (const std::string& stop : options_.until) {
        const std::size_t at = text.find(stop);
        if (at == std::string::npos) continue;
        ended = true;
        text.resize(at);
      }
      if (ended || static_cast<std::int64_t>(own.size()) == options_.max_tokens) {
        done(row.prompt, text);
      } else {
        kept.push_back(static_cast<std::int64_t>(i));
        left.push_back(std::move(row));
      }
    }
    if (left.empty()) return;
    if (left.size() < rows.size()) keep_rows(cache, to_ids(kept));
    rows = std::move(left);

    Ids last;
    std::vector<std::int64_t> padding;
    for (const Row& row : rows) {
      last.push_back(row.ids.back());
      padding.push_back(longest - row.prompt_length);
    }
    models::LlamaInput input{.ids = to_ids(last).unsqueeze(1), .cache = &cache};
    if (std::any_of(padding.begin(), padding.end(), [](std::int64_t size) { return size > 0; })) {
      const at::Tensor before = to_ids(padding).unsqueeze(1);
      const at::Tensor keys = at::arange(cache.length + 1, options).to(model_.device()).unsqueeze(0);
      input.attention_mask = keys.ge(before).to(at::kLong);
      input.position_ids = cache.length - before;
    }
    stop_if(options_.batch.cancelled);
    const auto output = model_.forward(input);
    count(output, static_cast<double>(rows.size()));
    next = output.logits.select(1, 0).argmax(-1).cpu();
  }
}

}  // namespace moh::eval
