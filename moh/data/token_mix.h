// Training data of several sources, each with its weight: the window of every position follows from the seed and the
// position alone.
//
// Of every 4,096 windows in a row each source gives its share, rounded, at least one, in an order shuffled for that
// block; within a source the windows follow its own order (WindowSampler). With one source it is that order.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "moh/data/token_data.h"

namespace moh::data {

struct TokenSource {
  std::string name;
  TokenStream stream;
  double weight = 1;  // share of the windows, relative to the others'
  std::optional<TokenStream> valid = {};
};

class TokenMix {
 public:
  TokenMix(TokenStream only) : TokenMix(std::vector<TokenSource>{{"", std::move(only)}}) {}  // NOLINT: a mix of one
  // Errors: no source, a weight that is not positive, a name twice.
  explicit TokenMix(std::vector<TokenSource> sources);

  const std::vector<TokenSource>& sources() const { return sources_; }
  std::int64_t size() const;  // tokens of all
  bool has_documents() const;

 private:
  std::vector<TokenSource> sources_;
};

class MixSampler {
 public:
  MixSampler(const TokenMix& mix, std::int64_t sequence, std::uint64_t seed);
  struct Windows {
    at::Tensor ids;        // [count, sequence + 1]
    at::Tensor documents;  // the same for document numbers, if wanted
  };
  // Windows number position .. position + count - 1 since the beginning of training.
  Windows windows(std::int64_t position, std::int64_t count, bool documents = false);
  // The source of a position, and which of its windows it is.
  std::pair<std::size_t, std::int64_t> place(std::int64_t position);

 private:
  const TokenMix* mix_;
  std::int64_t sequence_, block_ = -1;
  std::uint64_t seed_;
  std::vector<WindowSampler> samplers_;
  std::vector<std::int64_t> per_block_;     // of each source
  std::vector<std::size_t> block_sources_;  // of the present block
  std::vector<std::int64_t> block_numbers_;
};

}  // namespace moh::data
