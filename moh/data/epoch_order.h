// The order in which training visits n examples: each once an epoch, shuffled anew every epoch from the seed. The
// position is one number, so a resumed run goes on exactly where it stopped.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace moh::data {

// 0 .. size - 1 in an order that follows from below(n), numbers 0 .. n - 1, alone (Fisher-Yates; std::shuffle differs
// between libraries). Every order of training examples is made by this.
template <class Number, class Below>
std::vector<Number> shuffled(std::int64_t size, Below&& below) {
  std::vector<Number> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), Number{0});
  for (std::int64_t i = size - 1; i > 0; --i) std::swap(order[i], order[below(i + 1)]);
  return order;
}
// The same from a standard generator.
template <class Number>
std::vector<Number> shuffled(std::int64_t size, std::mt19937_64& random) {
  return shuffled<Number>(size, [&](std::int64_t count) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(count));
  });
}
// A generator for an epoch of a training.
inline std::mt19937_64 epoch_generator(std::uint64_t seed, std::int64_t epoch) {
  std::seed_seq words{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
                      static_cast<std::uint32_t>(epoch)};
  return std::mt19937_64(words);
}

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
