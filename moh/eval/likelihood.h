// Log-likelihoods of continuations, with little work done twice: what the choices of a question have in common is
// computed once, so is what all questions of a call begin with (the examples of MMLU), and logits are computed where
// they are asked for only.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "moh/eval/batch.h"
#include "moh/models/llama.h"

namespace moh::eval {

struct Continuation {
  Ids context, ids;  // both not empty
};
struct Likelihood {
  double log_likelihood = 0;
  bool greedy = true;  // every id is the most probable one
};
// Continuations that are likely to share their beginning.
using Question = std::vector<Continuation>;

class LikelihoodScorer {
 public:
  LikelihoodScorer(const models::Llama& model, BatchOptions options);

  // Scores the questions in an order of its own and tells `done` of each. A context too long for the model loses its
  // beginning. Error: a continuation longer than the model's context; NaN.
  using Done = std::function<void(std::size_t question, const std::vector<Likelihood>& likelihoods)>;
  void score(const std::vector<Question>& questions, const Done& done);

  double active_heads() const { return tokens_ > 0 ? active_ / tokens_ : 1.0; }  // share over the tokens computed
  double tokens() const { return tokens_; }

 private:
  struct Need;
  struct Input;
  struct Unit;

  std::vector<Unit> prepare(const std::vector<Question>& questions) const;
  void share_beginning(const std::vector<Unit>& units);
  void run(std::span<const Unit> units, std::vector<std::vector<Likelihood>>& results);
  void run_branches(std::span<const Unit> units, const models::KvCache& cache,
                    std::vector<std::vector<Likelihood>>& results);
  // A forward pass over right-padded rows; `lengths` are theirs without padding.
  at::Tensor forward(const std::vector<Ids>& rows, models::KvCache* cache, const std::vector<std::int64_t>& past);
  void settle(const at::Tensor& hidden, const std::vector<Need>& needs,
              std::vector<std::vector<Likelihood>>& results) const;

  const models::Llama& model_;
  BatchOptions options_;
  bool windows_ = false;  // some layer sees a window of keys, where padding would take room
  OutputHead head_;
  Ids beginning_;  // of all inputs of a call
  models::KvCache beginning_cache_;
  double active_ = 0, tokens_ = 0;
};

}  // namespace moh::eval
