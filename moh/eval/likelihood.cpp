#include "moh/eval/likelihood.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <span>

#include "moh/base/error.h"
#include "moh/ops/routing.h"

namespace moh::eval {
namespace {

constexpr std::int64_t kShortestBeginning = 16;  // tokens worth a forward pass of their own
constexpr std::int64_t kLogitRows = 128;         // rows of logits in memory at a time

std::int64_t common_length(const Ids& a, const Ids& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

std::int64_t size_of(const Ids& ids) { return static_cast<std::int64_t>(ids.size()); }

}  // namespace

// The log-probability of `target` after the token at `position` belongs to one continuation.
struct LikelihoodScorer::Need {
  std::size_t question, continuation;
  std::int64_t position;  // in the input; in settle: in all rows of the batch
  std::int64_t target;
};

struct LikelihoodScorer::Input {
  Ids ids;
  std::vector<Need> needs;
};

// Inputs of one question that begin alike: `prefix` tokens of them are computed once.
struct LikelihoodScorer::Unit {
  std::vector<Input> inputs;
  std::int64_t prefix = 0;
};

LikelihoodScorer::LikelihoodScorer(const models::Llama& model, BatchOptions options)
    : model_(model), options_(std::move(options)), windows_(has_windows(model)), head_(model) {
  MOH_CHECK(options_.tokens > 0, "[eval] a batch must have at least one token, got ", options_.tokens);
}

std::vector<LikelihoodScorer::Unit> LikelihoodScorer::prepare(const std::vector<Question>& questions) const {
  const std::int64_t context = model_.config().max_position_embeddings;
  std::vector<Unit> units;
  for (std::size_t q = 0; q < questions.size(); ++q) {
    std::map<Ids, std::size_t> known;  // the same input is computed once
    Unit unit;
    for (std::size_t c = 0; c < questions[q].size(); ++c) {
      const auto& [before, ids] = questions[q][c];
      const std::int64_t length = size_of(ids);
      MOH_CHECK(!before.empty() && length > 0, "[eval] a context or a continuation without tokens cannot be scored");
      MOH_CHECK(length <= context, "[eval] a continuation of ", length,
                " tokens does not fit into the model's context of ", context);
      Ids input = before;
      input.insert(input.end(), ids.begin(), ids.end() - 1);
      if (size_of(input) > context) input.erase(input.begin(), input.end() - context);
      const auto [at, is_new] = known.emplace(input, unit.inputs.size());
      if (is_new) unit.inputs.push_back({input, {}});
      for (std::int64_t i = 0; i < length; ++i) {
        unit.inputs[at->second].needs.push_back({q, c, size_of(input) - length + i, ids[static_cast<std::size_t>(i)]});
      }
    }
    if (unit.inputs.empty()) continue;
    unit.prefix = size_of(unit.inputs[0].ids);
    for (const Input& input : unit.inputs) {
      unit.prefix = std::min(unit.prefix, common_length(unit.inputs[0].ids, input.ids));
    }
    units.push_back(std::move(unit));
  }
  return units;
}

// What all inputs begin with, less what is needed for some answer, goes into a cache of its own.
void LikelihoodScorer::share_beginning(const std::vector<Unit>& units) {
  std::int64_t length = units.size() > 1 ? size_of(units[0].inputs[0].ids) : 0;
  for (const Unit& unit : units) {
    for (const Input& input : unit.inputs) {
      length = std::min(length, common_length(units[0].inputs[0].ids, input.ids));
      for (const Need& need : input.needs) length = std::min(length, need.position);
    }
  }
  if (length < kShortestBeginning) length = 0;
  const Ids& first = units[0].inputs[0].ids;
  Ids beginning(first.begin(), first.begin() + length);
  if (beginning == beginning_) return;
  beginning_cache_ = {};
  beginning_ = std::move(beginning);
  if (length == 0) return;
  beginning_cache_ = model_.make_cache(1, length);
  for (std::int64_t done = 0; done < length; done += options_.tokens) {
    const std::int64_t end = std::min(length, done + options_.tokens);
    forward({Ids(beginning_.begin() + done, beginning_.begin() + end)}, &beginning_cache_, {done});
  }
}

void LikelihoodScorer::score(const std::vector<Question>& questions, const Done& done) {
  const c10::NoGradGuard no_grad;
  std::vector<std::vector<Likelihood>> results;
  for (const Question& question : questions) results.emplace_back(question.size());
  const std::vector<Unit> prepared = prepare(questions);
  if (prepared.empty()) return;
  share_beginning(prepared);
  const std::int64_t shared = size_of(beginning_);

  std::vector<Unit> units;
  std::vector<int> left(questions.size(), 0);
  for (const Unit& unit : prepared) {
    const std::size_t question = unit.inputs[0].needs[0].question;
    if (unit.prefix > shared) {
      units.push_back(unit);
      left[question] = 1;
      continue;
    }
    for (const Input& input : unit.inputs) {  // nothing in common
      units.push_back({{input}, size_of(input.ids)});
      ++left[question];
    }
  }
  // The longest first: batches of about one length, and memory runs out at once if it does.
  std::stable_sort(units.begin(), units.end(), [](const Unit& a, const Unit& b) { return a.prefix > b.prefix; });
  for (std::size_t begin = 0; begin < units.size();) {
    const std::int64_t length = units[begin].prefix - shared;
    const std::int64_t rows =
        std::min(std::max<std::int64_t>(1, options_.tokens / length), max_cache_rows(model_, units[begin].prefix));
    std::size_t end = begin + 1;
    while (end < units.size() && static_cast<std::int64_t>(end - begin) < rows &&
           (!windows_ || units[end].prefix == units[begin].prefix)) {
      ++end;
    }
    const std::span<const Unit> batch(units.data() + begin, end - begin);
    run(batch, results);
    for (const Unit& unit : batch) {
      const std::size_t question = unit.inputs[0].needs[0].question;
      if (--left[question] == 0) done(question, results[question]);
    }
    begin = end;
  }
}

void LikelihoodScorer::run(std::span<const Unit> units, std::vector<std::vector<Likelihood>>& results) {
  const std::int64_t shared = size_of(beginning_);
  const auto rows = static_cast<std::int64_t>(units.size());
  const std::int64_t length = units[0].prefix - shared;
  std::vector<Ids> parts;
  std::vector<Need> needs;
  bool branches = false;
  for (std::int64_t row = 0; row < rows; ++row) {
    const Unit& unit = units[static_cast<std::size_t>(row)];
    const Ids& ids = unit.inputs[0].ids;
    parts.emplace_back(ids.begin() + shared, ids.begin() + unit.prefix);
    for (const Input& input : unit.inputs) {
      branches = branches || size_of(input.ids) > unit.prefix;
      for (Need need : input.needs) {
        if (need.position >= unit.prefix) continue;
        need.position += row * length - shared;
        needs.push_back(need);
      }
    }
  }
  models::KvCache cache;
  if (branches || shared > 0) {
    cache = model_.make_cache(rows, shared + length);
    for (std::size_t layer = 0; layer < cache.key.size() && shared > 0; ++layer) {
      cache.key[layer].narrow(2, 0, shared).copy_(beginning_cache_.key[layer]);
      cache.value[layer].narrow(2, 0, shared).copy_(beginning_cache_.value[layer]);
    }
    cache.length = shared;
  }
  const bool cached = cache.capacity > 0;
  const std::vector<std::int64_t> past(units.size(), shared);
  settle(forward(parts, cached ? &cache : nullptr, past), needs, results);
  if (branches) run_branches(units, cache, results);
}

void LikelihoodScorer::run_branches(std::span<const Unit> units, const models::KvCache& cache,
                                    std::vector<std::vector<Likelihood>>& results) {
  struct Branch {
    std::int64_t unit, prefix, length;
    const Input* input;
  };
  std::vector<Branch> branches;
  for (std::size_t i = 0; i < units.size(); ++i) {
    for (const Input& input : units[i].inputs) {
      const std::int64_t length = size_of(input.ids) - units[i].prefix;
      if (length > 0) branches.push_back({static_cast<std::int64_t>(i), units[i].prefix, length, &input});
    }
  }
  std::stable_sort(branches.begin(), branches.end(),
                   [](const Branch& a, const Branch& b) { return a.length > b.length; });
  for (std::size_t begin = 0; begin < branches.size();) {
    const std::int64_t length = branches[begin].length;
    const std::int64_t most =
        std::min(std::max<std::int64_t>(1, options_.tokens / length), max_cache_rows(model_, cache.length + length));
    // A row's padding takes room in the context too.
    std::int64_t longest = branches[begin].prefix;
    std::size_t end = begin + 1;
    while (end < branches.size() && static_cast<std::int64_t>(end - begin) < most &&
           std::max(longest, branches[end].prefix) + length <= model_.config().max_position_embeddings) {
      longest = std::max(longest, branches[end++].prefix);
    }
    const auto rows = static_cast<std::int64_t>(end - begin);
    std::vector<Ids> parts;
    std::vector<std::int64_t> past, from;
    std::vector<Need> needs;
    for (std::size_t i = begin; i < end; ++i) {
      const auto& [unit, prefix, own_length, input] = branches[i];
      parts.emplace_back(input->ids.begin() + prefix, input->ids.end());
      past.push_back(prefix);
      from.push_back(unit);
      for (Need need : input->needs) {
        if (need.position < prefix) continue;
        need.position += static_cast<std::int64_t>(i - begin) * length - prefix;
        needs.push_back(need);
      }
    }
    models::KvCache extended = model_.make_cache(rows, longest + length);
    const at::Tensor sources = at::tensor(from, at::TensorOptions(at::kLong)).to(model_.device());
    for (std::size_t layer = 0; layer < cache.key.size(); ++layer) {
      const auto copy = [&](const at::Tensor& to, const at::Tensor& source) {
        to.narrow(2, 0, longest).copy_(source.narrow(2, 0, longest).index_select(0, sources));
      };
      copy(extended.key[layer], cache.key[layer]);
      copy(extended.value[layer], cache.value[layer]);
    }
    extended.length = longest;
    settle(forward(parts, &extended, past), needs, results);
    begin = end;
  }
}

// [B * T, C], the last hidden states.
at::Tensor LikelihoodScorer::forward(const std::vector<Ids>& rows, models::KvCache* cache,
                                     const std::vector<std::int64_t>& past) {
  RowBatch batch(rows, past, cache != nullptr ? cache->length : 0, model_.device());
  stop_if(options_.cancelled);
  const models::LlamaOutput output = model_.forward({.ids = batch.ids,
                                                     .position_ids = batch.positions,
                                                     .attention_mask = batch.mask,
                                                     .cache = cache,
                                                     .last_only = true});
  std::vector<at::Tensor> gates;
  for (const auto& routing : output.routing) {
    gates.push_back(routing.gates.reshape({-1, routing.gates.size(-1)}).index_select(0, batch.real));
  }
  const auto tokens = static_cast<double>(batch.real.size(0));
  active_ += tokens * ops::active_share(gates);
  tokens_ += tokens;
  return output.last_hidden.reshape({-1, output.last_hidden.size(-1)});
}

void LikelihoodScorer::settle(const at::Tensor& hidden, const std::vector<Need>& needs,
                              std::vector<std::vector<Likelihood>>& results) const {
  std::map<std::int64_t, std::vector<const Need*>> by_position;  // choices of one token ask for the same row
  for (const Need& need : needs) by_position[need.position].push_back(&need);
  for (auto next = by_position.begin(); next != by_position.end();) {
    std::vector<std::int64_t> positions, places;
    std::vector<const Need*> asked;
    const std::int64_t vocabulary = model_.config().vocab_size;
    for (; next != by_position.end() && static_cast<std::int64_t>(positions.size()) < kLogitRows; ++next) {
      for (const Need* need : next->second) {
        MOH_CHECK(need->target >= 0 && need->target < vocabulary, "[eval] token id ", need->target,
                  " is outside the model's vocabulary of ", vocabulary);
        places.push_back(static_cast<std::int64_t>(positions.size()) * vocabulary + need->target);
        asked.push_back(need);
      }
      positions.push_back(next->first);
    }
    const auto index = [&](const std::vector<std::int64_t>& values) {
      return at::tensor(values, at::TensorOptions(at::kLong)).to(hidden.device());
    };
    const at::Tensor logits = head_(hidden.index_select(0, index(positions))).to(at::kFloat);
    const at::Tensor normal = at::logsumexp(logits, {-1}).cpu(), best = logits.argmax(-1).cpu();
    const at::Tensor wanted = logits.reshape({-1}).index_select(0, index(places)).cpu();
    for (std::size_t i = 0; i < asked.size(); ++i) {
      const std::int64_t row = places[i] / vocabulary;
      const double value = static_cast<double>(wanted.const_data_ptr<float>()[i]) -
                           static_cast<double>(normal.const_data_ptr<float>()[row]);
      if (std::isnan(value)) {
        io::check_finite(model_.parameters(), "eval");
        fail("[eval] the model's logits are NaN, although its weights are finite; try --dtype fp32");
      }
      Likelihood& likelihood = results[asked[i]->question][asked[i]->continuation];
      likelihood.log_likelihood += value;
      likelihood.greedy = likelihood.greedy && best.const_data_ptr<std::int64_t>()[row] == asked[i]->target;
    }
  }
}

}  // namespace moh::eval
