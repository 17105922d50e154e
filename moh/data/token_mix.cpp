#include "moh/data/token_mix.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "moh/base/error.h"
#include "moh/data/epoch_order.h"

namespace moh::data {
namespace {

constexpr std::int64_t kBlock = 4096;

// Whole numbers that add up to kBlock, each at least one, as near to the weights as can be (largest remainders).
std::vector<std::int64_t> shares(const std::vector<TokenSource>& sources) {
  double total = 0;
  for (const TokenSource& source : sources) total += source.weight;
  const auto count = static_cast<std::int64_t>(sources.size());
  std::vector<std::int64_t> result;
  std::vector<std::pair<double, std::size_t>> rest;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const double exact = sources[i].weight / total * static_cast<double>(kBlock - count);
    result.push_back(1 + static_cast<std::int64_t>(exact));
    rest.emplace_back(std::floor(exact) - exact, i);
  }
  std::sort(rest.begin(), rest.end());  // the largest remainder first
  const std::int64_t left = kBlock - std::accumulate(result.begin(), result.end(), std::int64_t{0});
  for (std::int64_t i = 0; i < left; ++i) ++result[rest[static_cast<std::size_t>(i)].second];
  return result;
}

}  // namespace

TokenMix::TokenMix(std::vector<TokenSource> sources) : sources_(std::move(sources)) {
  MOH_CHECK(!sources_.empty() && sources_.size() <= 1024, "[data] a mix has 1 to 1024 sources, got ", sources_.size());
  std::set<std::string> names;
  for (const TokenSource& source : sources_) {
    MOH_CHECK(source.weight > 0 && std::isfinite(source.weight), "[data] source `", source.name,
              "`: weight must be positive, got ", source.weight);
    MOH_CHECK(names.insert(source.name).second, "[data] two sources are called `", source.name, "`");
  }
}

std::int64_t TokenMix::size() const {
  std::int64_t tokens = 0;
  for (const TokenSource& source : sources_) tokens += source.stream.size();
  return tokens;
}

bool TokenMix::has_documents() const {
  return std::all_of(sources_.begin(), sources_.end(),
                     [](const auto& source) { return source.stream.has_documents(); });
}

MixSampler::MixSampler(const TokenMix& mix, std::int64_t sequence, std::uint64_t seed)
    : mix_(&mix), sequence_(sequence), seed_(seed), per_block_(shares(mix.sources())) {
  for (std::size_t i = 0; i < mix.sources().size(); ++i) {
    samplers_.emplace_back(mix.sources()[i].stream.size(), sequence, seed + i);
  }
}

std::pair<std::size_t, std::int64_t> MixSampler::place(std::int64_t position) {
  if (samplers_.size() == 1) return {0, position};
  const std::int64_t block = position / kBlock;
  if (block != block_) {
    std::vector<std::size_t> sources;
    for (std::size_t i = 0; i < per_block_.size(); ++i) {
      sources.insert(sources.end(), static_cast<std::size_t>(per_block_[i]), i);
    }
    // Another stream of the seed than the epochs' orders.
    std::mt19937_64 random = epoch_generator(~seed_, block);
    const auto order = shuffled<std::int64_t>(kBlock, random);
    block_sources_.assign(kBlock, 0);
    for (std::int64_t i = 0; i < kBlock; ++i) block_sources_[order[i]] = sources[i];
    block_numbers_.clear();
    std::vector<std::int64_t> seen(per_block_.size(), 0);
    for (const std::size_t source : block_sources_) block_numbers_.push_back(seen[source]++);
    block_ = block;
  }
  const std::size_t source = block_sources_[position % kBlock];
  return {source, block * per_block_[source] + block_numbers_[position % kBlock]};
}

MixSampler::Windows MixSampler::windows(std::int64_t position, std::int64_t count, bool documents) {
  std::vector<at::Tensor> ids, numbers;
  for (std::int64_t i = position; i < position + count; ++i) {
    const auto [source, number] = place(i);
    const TokenStream& stream = mix_->sources()[source].stream;
    const auto starts = samplers_[source].starts(number, 1);
    ids.push_back(stream.windows(starts, sequence_));
    if (documents) numbers.push_back(stream.documents(starts, sequence_));
  }
  return {at::cat(ids), documents ? at::cat(numbers) : at::Tensor()};
}

}  // namespace moh::data
