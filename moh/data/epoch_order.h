// The order in which training visits n examples: each once an epoch, shuffled anew every epoch from the seed. The
// position is one number, so a resumed run goes on exactly where it stopped.
#pragma once

#include <cstdint>
#include <vector>

namespace moh::data {

class EpochOrder {
 public:
  EpochOrder(std::int64_t size, std::uint64_t seed);
  // The example that is number `position` since the beginning of training.
  std::int64_t operator()(std::int64_t position);

 private:
  std::int64_t size_, epoch_ = -1;
  std::uint64_t seed_;
  std::vector<std::int64_t> order_;
};

// A seed for example number `position`, unlike those of its neighbours (SplitMix64).
std::uint64_t example_seed(std::uint64_t seed, std::uint64_t position);

}  // namespace moh::data
